"""Model versions and who serves them: manifests, the registry folder, verification, and the control topic."""
