"""What commands share: words and YAML files in, what Lightning runs out."""
