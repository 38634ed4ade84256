// What the files here share: pairs of bfloat16 numbers, memory of a thread, an exponential, large results.
//
// vdpbf16ps multiplies pairs: two neighbours along the summed dimension in one 32-bit lane. Where that dimension is a
// row of memory the pairs are there already; where it is a column, rows are interleaved two by two, or matrices of pairs
// are turned. Each thread has outputs of its own, and every sum runs in one order: no result depends on the number of
// threads.

#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace {

using bf16 = uint16_t;

inline int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t whole(int64_t n, int64_t of) { return over(n, of) * of; }
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

// Sixteen numbers of two rows as sixteen pairs.
inline __m512i pairs_of_rows(const bf16 *row, const bf16 *next, __mmask16 mask, __mmask16 next_mask) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row)), high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(next_mask, next));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Rows interleaved two by two: (n, columns) -> (n/2, columns) pairs, columns a multiple of 16.
inline void interleave_rows(const bf16 *from, int64_t stride, int64_t n, int64_t columns, uint32_t *to) {
    for (int64_t r = 0; r < n; r += 2, to += columns)
        for (int64_t c = 0; c < columns; c += 32) {
            const bf16 *row = from + r * stride + c;
            const bool last = r + 1 == n;
            const __mmask32 mask = first32(columns - c);
            __m512i low, high;
            interleave(row, last ? row : row + stride, mask, last ? 0 : mask, &low, &high);
            _mm512_storeu_si512(to + c, low);
            if (columns - c > 16) _mm512_storeu_si512(to + c + 16, high);
        }
}

// A matrix of 16×16 pairs, turned.
inline void transpose(__m512i (&x)[16]) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]), y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            y[i + j] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0x88);
            y[i + j + 4] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        x[j] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0x88);
        x[j + 8] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0xdd);
    }
}

// 2^x for x ≤ 0, relative error 2e-7.
inline __m512 power(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.5403530e-4f);  // (ln 2)ᵏ / k!
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3333558e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

// Whether a result is so large that its writes had better pass the caches by: what follows finds it in memory anyway, and
// a line that is written whole need not be read first. Lines must be whole, so it begins at one.
inline bool past_caches(const void *out, int64_t numbers) { return numbers >= 1 << 20 && reinterpret_cast<uintptr_t>(out) % 64 == 0; }

// 32 numbers to memory; `far`, of whole lines, past the caches.
inline void put(bf16 *to, __mmask32 mask, __m512i numbers, bool far) {
    if (far && mask == ~0u)
        _mm512_stream_si512((__m512i *)to, numbers);
    else
        _mm512_mask_storeu_epi16(to, mask, numbers);
}

inline void store(bf16 *to, __m512 x) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x)); }

}  // namespace
