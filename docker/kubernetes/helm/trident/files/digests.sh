cd /models
sums=/etc/trident/digests/SHA256SUMS
sha256sum --check --strict --quiet "$sums"
expected=$(cut -c 67- "$sums" | sort)
if [ "$(find -L . -type f | sort)" != "$expected" ]; then
    echo "/models: has files that $sums does not name" >&2
    exit 1
fi
