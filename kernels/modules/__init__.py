"""Parts of models that are no products, on the CPU, with torch's bits: one call where torch needs many."""
