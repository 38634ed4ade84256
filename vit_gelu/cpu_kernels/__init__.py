"""Operators of torch for processors with AMX or AVX-512-BF16, by C++ files that are compiled where they run."""
