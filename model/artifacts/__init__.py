"""Published models: the manifest, the files of an artifact, the registry and its storage."""
