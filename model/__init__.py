"""The hybrid model on megatron-core. Knows no store and no Prefect."""
