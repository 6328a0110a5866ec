"""What `trident build` checks, prints and installs."""
