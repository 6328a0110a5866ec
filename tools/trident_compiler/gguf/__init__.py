"""GGUF files, and what a checkpoint's folder is made of out of one; the importer is `importer.import_gguf`."""
