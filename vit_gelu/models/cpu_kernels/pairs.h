// What the files here share: pairs of bfloat16 numbers, and memory of a thread.
//
// vdpbf16ps multiplies pairs: two neighbours along the summed dimension in one 32-bit lane. Where that dimension is a
// row of memory the pairs are there already; where it is a column, rows are interleaved two by two, and nothing is
// transposed. Each thread has outputs of its own, and every sum runs in one order: no result depends on the number of
// threads.

#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace {

using bf16 = uint16_t;

inline int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline __mmask32 first32(int64_t n) { return n >= 32 ? ~0u : n > 0 ? (1u << n) - 1 : 0; }
inline __mmask16 first16(int64_t n) { return n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0; }

// Memory of one thread, kept from call to call: fresh pages would cost more than a small product.
struct Scratch {
    void *memory = nullptr;
    int64_t bytes = 0;
    ~Scratch() { free(memory); }
    uint32_t *pairs(int64_t n) {
        if (n * 4 > bytes) {
            free(memory);
            bytes = over(n * 4, 64) * 64;
            memory = aligned_alloc(64, bytes);
            if (!memory) abort();
        }
        return static_cast<uint32_t *>(memory);
    }
};

// Two rows of 32 numbers as 32 pairs.
inline void interleave(const bf16 *row, const bf16 *next, __mmask32 mask, __mmask32 next_mask, __m512i *low, __m512i *high) {
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                           39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i a = _mm512_maskz_loadu_epi16(mask, row), b = _mm512_maskz_loadu_epi16(next_mask, next);
    *low = _mm512_permutex2var_epi16(a, order, b);
    *high = _mm512_permutex2var_epi16(a, _mm512_add_epi16(order, _mm512_set1_epi16(16)), b);
}

}  // namespace
