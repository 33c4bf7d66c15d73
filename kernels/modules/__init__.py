"""What repeats in models besides products, on the CPU, with torch's own bits: one call where torch needs many."""
