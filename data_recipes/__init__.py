"""What goes in: recipes, the operators they name, tokenizer, shards and tasks."""
