"""Products of bfloat16 matrices by a C++ file that is compiled where it runs, for processors with AVX-512-BF16."""
