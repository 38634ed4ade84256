// Products of bfloat16 matrices, summed in float32, for AVX-512-BF16 without tiles (Zen 4 and 5, Cooper Lake).

#include "pairs.h"

namespace {

constexpr int64_t ROWS = 8, COLUMNS = 48, VECTORS = COLUMNS / 16;  // a tile: 24 accumulators of 32 registers
constexpr int64_t DEPTH = 128;  // rows per pass of a weight gradient: its panels stay in the first-level cache
constexpr int64_t LINE = 16;    // pairs in a cache line; one more per panel keeps panels out of each other's sets
constexpr int64_t NARROW = ROWS * DEPTH / 2 + LINE, WIDE = COLUMNS * DEPTH / 2 + LINE;  // panels, in pairs

// Up to DEPTH rows as panels of 8 columns; their column sums are added to `sums`, unless that is null.
void pack_narrow(const bf16 *from, int64_t stride, int64_t rows, int64_t columns, uint32_t *to, float *sums) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (int64_t c = 0; c < columns; c += 128) {
        const int64_t left = columns - c;
        __m512 sum[8];
        for (int v = 0; v < 8; v++) sum[v] = _mm512_setzero_ps();
        for (int64_t r = 0; r < rows; r += 2)
            for (int64_t v = 0; v < 4 && left > 32 * v; v++) {
                const bf16 *row = from + r * stride + c + 32 * v;
                const bool last = r + 1 == rows;
                const __mmask32 mask = first32(left - 32 * v);
                __m512i low, high;
                interleave(row, last ? row : row + stride, mask, last ? 0 : mask, &low, &high);
                sum[2 * v] = _mm512_dpbf16_ps(sum[2 * v], (__m512bh)low, ones);
                sum[2 * v + 1] = _mm512_dpbf16_ps(sum[2 * v + 1], (__m512bh)high, ones);
                uint32_t *panel = to + (c / ROWS + 4 * v) * NARROW + r / 2 * ROWS;
                _mm256_storeu_si256((__m256i *)panel, _mm512_castsi512_si256(low));
                _mm256_storeu_si256((__m256i *)(panel + NARROW), _mm512_extracti64x4_epi64(low, 1));
                _mm256_storeu_si256((__m256i *)(panel + 2 * NARROW), _mm512_castsi512_si256(high));
                _mm256_storeu_si256((__m256i *)(panel + 3 * NARROW), _mm512_extracti64x4_epi64(high, 1));
            }
        for (int64_t v = 0; sums && v < 8; v++) {
            const __mmask16 mask = first16(left - 16 * v);
            float *place = sums + c + 16 * v;
            if (mask) _mm512_mask_storeu_ps(place, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, place), sum[v]));
        }
    }
}

// The same as panels of 48 columns.
void pack_wide(const bf16 *from, int64_t stride, int64_t rows, int64_t columns, uint32_t *to) {
    for (int64_t c = 0; c < columns; c += 2 * COLUMNS)
        for (int64_t r = 0; r < rows; r += 2)
            for (int64_t v = 0; v < VECTORS && columns - c > 32 * v; v++) {
                const bf16 *row = from + r * stride + c + 32 * v;
                const bool last = r + 1 == rows;
                const __mmask32 mask = first32(columns - c - 32 * v);
                __m512i half[2];
                interleave(row, last ? row : row + stride, mask, last ? 0 : mask, half, half + 1);
                for (int64_t h = 0; h < 2; h++) {
                    const int64_t place = 2 * v + h;  // of six vectors, three to a panel
                    if (columns - c > 16 * place)
                        _mm512_storeu_si512(to + (c / COLUMNS + place / VECTORS) * WIDE + r / 2 * COLUMNS + 16 * (place % VECTORS), half[h]);
                }
            }
}

struct Tile {
    __m512 sum[ROWS][VECTORS];

    inline __attribute__((always_inline)) void clear() {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) sum[r][v] = _mm512_setzero_ps();
    }
    // One pair of each row of the left matrix, by one pair of each of 48 columns of the right one.
    inline __attribute__((always_inline)) void row(int r, uint32_t left, const __m512bh *right) {
        const __m512bh x = (__m512bh)_mm512_set1_epi32(left);
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], x, right[v]);
    }
};

#define RIGHT(panel) {(__m512bh)_mm512_load_si512(panel), (__m512bh)_mm512_load_si512((panel) + 16), (__m512bh)_mm512_load_si512((panel) + 32)}

// A tile of a weight gradient from two packed panels, written to `out`, or added to what is there.
void gradient_tile(const uint32_t *narrow, const uint32_t *wide, int64_t pairs, float *out, int64_t stride, int64_t rows, int64_t columns, bool add) {
    Tile tile;
    tile.clear();
    for (int64_t k = 0; k < pairs; k++, narrow += ROWS, wide += COLUMNS) {
        const __m512bh right[VECTORS] = RIGHT(wide);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) tile.row(r, narrow[r], right);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
        if (r < rows)
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) {
                const __mmask16 mask = first16(columns - 16 * v);
                float *place = out + r * stride + 16 * v;
                const __m512 before = add ? _mm512_maskz_loadu_ps(mask, place) : _mm512_setzero_ps();
                _mm512_mask_storeu_ps(place, mask, _mm512_add_ps(before, tile.sum[r][v]));
            }
}

// A tile of left·right + bias in bfloat16: eight rows of `left` where they lie, a packed panel of `right`.
void product_tile(const bf16 *left, int64_t stride_left, const uint32_t *panel, int64_t pairs, const float *bias, bf16 *out, int64_t stride, int64_t rows, int64_t columns) {
    const uint32_t *row[ROWS];
    for (int64_t r = 0; r < ROWS; r++) row[r] = reinterpret_cast<const uint32_t *>(left + least(r, rows - 1) * stride_left);
    const uint32_t *a = row[0], *b = row[1], *c = row[2], *d = row[3], *e = row[4], *f = row[5], *g = row[6], *h = row[7];
    Tile tile;
    tile.clear();
    for (int64_t k = 0; k < pairs; k++, panel += COLUMNS) {
        const __m512bh right[VECTORS] = RIGHT(panel);
        tile.row(0, a[k], right);
        tile.row(1, b[k], right);
        tile.row(2, c[k], right);
        tile.row(3, d[k], right);
        tile.row(4, e[k], right);
        tile.row(5, f[k], right);
        tile.row(6, g[k], right);
        tile.row(7, h[k], right);
    }
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; v++) {
        const __mmask16 mask = first16(columns - 16 * v);
        // A branch and not a mask: a load that would fault costs a hundred cycles even where it is masked.
        const __m512 more = bias ? _mm512_maskz_loadu_ps(mask, bias + 16 * v) : _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
            if (r < rows)
                _mm256_mask_storeu_epi16(out + r * stride + 16 * v, mask, (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(tile.sum[r][v], more)));
    }
}

// Panels of 48 columns of the right matrix; `turned`: its columns are the rows of `from`.
void pack_panel(const bf16 *from, int64_t depth, int64_t columns, bool turned, int64_t panel, uint32_t *to) {
    for (int64_t v = 0; v < VECTORS; v++) {
        const int64_t c = panel * COLUMNS + 16 * v;
        const __mmask16 mask = first16(columns - c);
        if (turned) {
            const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
            const __m512i offsets = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(2 * depth)));
            for (int64_t k = 0; k < depth; k += 2)
                _mm512_store_si512(to + k / 2 * COLUMNS + 16 * v, _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, offsets, from + c * depth + k, 1));
        } else {
            for (int64_t k = 0; k < depth; k += 2) {
                const bf16 *place = from + k * columns + c;
                _mm512_store_si512(to + k / 2 * COLUMNS + 16 * v, pairs_of_rows(place, place + columns, mask, mask));
            }
        }
    }
}

// Columns m of dy by columns n of x: one thread's part of a weight gradient.
void gradient_part(const bf16 *dy, int64_t stride_dy, const bf16 *x, int64_t stride_x, int64_t rows, int64_t m, int64_t n, float *dw, float *db) {
    static thread_local Scratch scratch;
    const int64_t narrow = over(m, 32) * 4 * NARROW;
    uint32_t *left = scratch.pairs(narrow + over(n, COLUMNS) * WIDE), *right = left + narrow;
    if (db) memset(db, 0, m * sizeof(float));
    for (int64_t r = 0; r < rows; r += DEPTH) {
        const int64_t depth = least(DEPTH, rows - r), next = r + depth, coming = least(DEPTH, rows - next);
        pack_narrow(dy + r * stride_dy, stride_dy, depth, m, left, db);
        pack_wide(x + r * stride_x, stride_x, depth, n, right);
        const int64_t tiles = over(m, ROWS) * over(n, COLUMNS);
        int64_t t = 0;
        for (int64_t j = 0; j < n; j += COLUMNS)
            for (int64_t i = 0; i < m; i += ROWS, t++) {
                for (int64_t q = next + t * coming / tiles; q < next + (t + 1) * coming / tiles; q++) {
                    for (int64_t c = 0; c < m; c += 32) _mm_prefetch((const char *)(dy + q * stride_dy + c), _MM_HINT_T1);
                    for (int64_t c = 0; c < n; c += 32) _mm_prefetch((const char *)(x + q * stride_x + c), _MM_HINT_T1);
                }
                gradient_tile(left + i / ROWS * NARROW, right + j / COLUMNS * WIDE, over(depth, 2), dw + i * stride_x + j, stride_x, m - i, n - j, r > 0);
            }
    }
}

}  // namespace

extern "C" {

// dw (out, in) = dyᵀ·x and db (out) = sums of dy's columns, in float32, from dy (rows, out) and x (rows, in).
void weight_gradient(const bf16 *dy, const bf16 *x, int64_t rows, int64_t out, int64_t in, float *dw, float *db, int threads) {
    // A grid of parts: every thread packs its columns of both matrices, so parts that are nearly square cost least.
    int64_t m = 0, n = 0;
    double best = 0;
    for (int64_t a = 1; a <= threads; a++) {
        const int64_t tall = over(over(out, ROWS), a) * ROWS, broad = over(over(in, COLUMNS), threads / a) * COLUMNS;
        const double cost = double(tall) * broad + 8.0 * (tall + broad);
        if (a == 1 || cost < best) best = cost, m = tall, n = broad;
    }
    const int64_t across = over(in, n), parts = over(out, m) * across;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < parts; p++) {
        const int64_t i = p / across * m, j = p % across * n;
        gradient_part(dy + i, out, x + j, in, rows, least(m, out - i), least(n, in - j), dw + i * in + j, j ? nullptr : db + i);
    }
}

// out (rows, columns) = x·wᵀ with w (columns, depth) if `turned`, else x·w with w (depth, columns); depth is even.
// bias (columns), added before rounding, may be null.
void product(const bf16 *x, const bf16 *w, const float *bias, int64_t rows, int64_t depth, int64_t columns, int turned, bf16 *out, int threads) {
    static thread_local Scratch scratch;
    const int64_t panels = over(columns, COLUMNS), size = over(COLUMNS * depth / 2, LINE) * LINE + LINE;
    uint32_t *packed = scratch.pairs(panels * size);
    const int64_t chunk = ROWS * (rows >= 32 * ROWS * threads ? 8 : 1), chunks = over(rows, chunk);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++) pack_panel(w, depth, columns, turned, p, packed + p * size);
#pragma omp for schedule(static)
        for (int64_t q = 0; q < chunks; q++) {
            const int64_t start = q * chunk, end = least(rows, start + chunk), coming = least(rows, end + chunk) - end;
            const int64_t tiles = panels * over(end - start, ROWS);
            int64_t t = 0;
            for (int64_t p = 0; p < panels; p++)
                for (int64_t r = start; r < end; r += ROWS, t++) {
                    for (int64_t next = end + t * coming / tiles; next < end + (t + 1) * coming / tiles; next++)
                        for (int64_t c = 0; c < depth; c += 32) _mm_prefetch((const char *)(x + next * depth + c), _MM_HINT_T1);
                    product_tile(x + r * depth, depth, packed + p * size, depth / 2, bias ? bias + p * COLUMNS : nullptr, out + r * columns + p * COLUMNS, columns, least(ROWS, rows - r), columns - p * COLUMNS);
                }
        }
    }
}
}
