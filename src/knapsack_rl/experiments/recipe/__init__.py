"""What decides a run: the recipe, and the YAML file that it comes in."""
