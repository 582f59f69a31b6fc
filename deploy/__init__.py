"""Ways to run foldserve on engines: manifests, units, scripts, and in checks/ their trials."""
