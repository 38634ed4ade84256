"""bfloat16 on processors with AMX or AVX-512-BF16: operators of torch by C++ files that are compiled where they run."""
