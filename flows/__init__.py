"""What runs after what: the Prefect flow, its parameters and the `m1` command. Knows no tensors."""
