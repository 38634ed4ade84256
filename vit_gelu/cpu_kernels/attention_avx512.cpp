// softmax(q·kᵀ·scale)·v and its gradients for bfloat16 with float32 sums: one image and head at a time, whose matrices
// stay in the second-level cache. Queries, keys and values lie as the qkv projection leaves them, (b, n, 3, h, d); d is
// a multiple of 16. The backward pass computes the weights again from the logarithm of each row's sum (Dao et al. 2022,
// arXiv:2205.14135, appendix B.2), in base 2.

#include "pairs.h"

namespace {

constexpr int ROWS = 5, VECTORS = 5;  // a tile: 25 accumulators of 32 registers; 65 tokens are 13 × 5 rows of 5 vectors

struct Shape {
    int64_t n, d, token, wide;  // token: numbers from one token to the next; wide: n up to a whole vector
};

// A matrix of pairs as left factor: element (r, k) at at[r * row + k * step].
struct Left {
    const uint32_t *at;
    int64_t row, step;
};

template <int V, typename Use>
inline void tile(Left left, int64_t rows, const uint32_t *right, int64_t stride, int64_t pairs, int64_t column, const Use &use) {
    const uint32_t *a = left.at, *b = left.at + least(1, rows - 1) * left.row, *c = left.at + least(2, rows - 1) * left.row;
    const uint32_t *d = left.at + least(3, rows - 1) * left.row, *e = left.at + least(4, rows - 1) * left.row;
    __m512 sum[ROWS][V];
#pragma GCC unroll 5
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 5
        for (int v = 0; v < V; v++) sum[r][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; k++, right += stride) {
        __m512bh y[V];
#pragma GCC unroll 5
        for (int v = 0; v < V; v++) y[v] = (__m512bh)_mm512_loadu_si512(right + 16 * v);
        const int64_t at = k * left.step;
#define ROW(r, pointer)                                                       \
    {                                                                         \
        const __m512bh x = (__m512bh)_mm512_set1_epi32(pointer[at]);          \
        _Pragma("GCC unroll 5") for (int v = 0; v < V; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], x, y[v]); \
    }
        ROW(0, a) ROW(1, b) ROW(2, c) ROW(3, d) ROW(4, e)
#undef ROW
    }
#pragma GCC unroll 5
    for (int r = 0; r < ROWS; r++)
        if (r < rows)
#pragma GCC unroll 5
            for (int v = 0; v < V; v++) use(r, column + 16 * v, sum[r][v]);
}

// Up to five rows of left·right; `use(row, column, sixteen sums)` gets the result. `stride` is right's width, in pairs.
template <typename Use>
inline void product(Left left, int64_t rows, const uint32_t *right, int64_t stride, int64_t columns, int64_t pairs, const Use &use) {
    for (int64_t c = 0; c < columns; c += 16 * VECTORS) switch (least(VECTORS, (columns - c) / 16)) {
            case 5: tile<5>(left, rows, right + c, stride, pairs, c, use); break;
            case 4: tile<4>(left, rows, right + c, stride, pairs, c, use); break;
            case 3: tile<3>(left, rows, right + c, stride, pairs, c, use); break;
            case 2: tile<2>(left, rows, right + c, stride, pairs, c, use); break;
            default: tile<1>(left, rows, right + c, stride, pairs, c, use);
        }
}

// Pairs along each row, turned: (n, d) -> (d/2, wide) pairs, zeros past n.
void turn(const bf16 *from, const Shape &s, uint32_t *to) {
    for (int64_t r = 0; r < s.wide; r += 16)
        for (int64_t c = 0; c < s.d / 2; c += 16) {
            const __mmask16 mask = first16(s.d / 2 - c);
            __m512i x[16];
            for (int i = 0; i < 16; i++)
                x[i] = _mm512_maskz_loadu_epi32(r + i < s.n ? mask : 0, from + least(r + i, s.n - 1) * s.token + 2 * c);
            transpose(x);
            for (int64_t i = 0; i < least(16, s.d / 2 - c); i++) _mm512_storeu_si512(to + (c + i) * s.wide + r, x[i]);
        }
}

// Asks for rows of the next head while this one is computed.
inline void fetch(const bf16 *rows, int64_t stride, int64_t n, int64_t d) {
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < d; c += 32) _mm_prefetch((const char *)(rows + r * stride + c), _MM_HINT_T1);
}

inline const uint32_t *pairs_of(const bf16 *row) { return reinterpret_cast<const uint32_t *>(row); }

void forward(const bf16 *qkv, const bf16 *next, const Shape &s, int64_t width, float scale, bf16 *out, float *logs) {
    static thread_local Scratch scratch;
    const int64_t depth = s.d / 2, even = over(s.n, 2);
    uint32_t *keys = scratch.pairs(depth * s.wide + even * s.d + ROWS * s.wide * 2), *values = keys + depth * s.wide;
    float *scores = reinterpret_cast<float *>(values + even * s.d);
    bf16 *weights = reinterpret_cast<bf16 *>(scores + ROWS * s.wide);
    turn(qkv + width, s, keys);
    interleave_rows(qkv + 2 * width, s.token, s.n, s.d, values);
    const __m512 by = _mm512_set1_ps(scale * 1.44269504f);
    for (int64_t i = 0; i < s.n; i += ROWS) {
        const int64_t rows = least(ROWS, s.n - i);
        for (int64_t part = 0; part < 3; part++) fetch(next + i * s.token + part * width, s.token, rows, s.d);
        product({pairs_of(qkv + i * s.token), s.token / 2, 1}, rows, keys, s.wide, s.wide, depth,
                [&](int64_t r, int64_t c, __m512 sum) { _mm512_storeu_ps(scores + r * s.wide + c, _mm512_mul_ps(sum, by)); });
        float share[ROWS];
        for (int64_t r = 0; r < rows; r++) {
            const float *row = scores + r * s.wide;
            __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
            for (int64_t c = 0; c < s.wide; c += 16) {
                const __m512 x = _mm512_loadu_ps(row + c);
                most = _mm512_mask_max_ps(most, first16(s.n - c), most, x);
            }
            most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
            for (int64_t c = 0; c < s.wide; c += 16) {
                const __m512 x = _mm512_maskz_mov_ps(first16(s.n - c), power(_mm512_sub_ps(_mm512_loadu_ps(row + c), most)));
                sum = _mm512_add_ps(sum, x);
                store(weights + r * s.wide + c, x);
            }
            const float total = _mm512_reduce_add_ps(sum);
            share[r] = 1.0f / total;
            if (logs) logs[i + r] = _mm512_cvtss_f32(most) + log2f(total);
        }
        product({pairs_of(weights), s.wide / 2, 1}, rows, values, s.d, s.d, even,
                [&](int64_t r, int64_t c, __m512 sum) { store(out + (i + r) * width + c, _mm512_mul_ps(sum, _mm512_set1_ps(share[r]))); });
    }
}

void backward(const bf16 *grad, const bf16 *qkv, const float *logs, int64_t next_narrow, int64_t next_wide, const Shape &s, int64_t width, float scale, bf16 *to) {
    static thread_local Scratch scratch;
    const int64_t depth = s.d / 2, even = over(s.n, 2), turned = depth * s.wide, rowwise = even * s.d, square = even * s.wide;
    uint32_t *keys = scratch.pairs(2 * turned + 3 * rowwise + 4 * square + 2 * ROWS * s.wide), *values = keys + turned;
    uint32_t *by_keys = values + turned, *by_queries = by_keys + rowwise, *by_grad = by_queries + rowwise;
    uint32_t *turned_weights = by_grad + rowwise, *turned_scores = turned_weights + square;
    bf16 *weights = reinterpret_cast<bf16 *>(turned_scores + square), *scores = weights + 2 * square;
    float *exact = reinterpret_cast<float *>(scores + 2 * square), *slopes = exact + ROWS * s.wide;
    turn(qkv + width, s, keys);
    turn(qkv + 2 * width, s, values);
    interleave_rows(qkv + width, s.token, s.n, s.d, by_keys);
    interleave_rows(qkv, s.token, s.n, s.d, by_queries);
    interleave_rows(grad, width, s.n, s.d, by_grad);
    const __m512 by = _mm512_set1_ps(scale * 1.44269504f), times = _mm512_set1_ps(scale);
    for (int64_t i = 0; i < s.n; i += ROWS) {
        const int64_t rows = least(ROWS, s.n - i);
        for (int64_t part = 0; part < 3; part++) fetch(qkv + next_wide + i * s.token + part * width, s.token, rows, s.d);
        fetch(grad + next_narrow + i * width, width, rows, s.d);
        product({pairs_of(qkv + i * s.token), s.token / 2, 1}, rows, keys, s.wide, s.wide, depth,
                [&](int64_t r, int64_t c, __m512 sum) {
                    const __m512 x = power(_mm512_fmsub_ps(sum, by, _mm512_set1_ps(logs[i + r])));
                    const __m512 weight = _mm512_maskz_mov_ps(first16(s.n - c), x);
                    _mm512_storeu_ps(exact + r * s.wide + c, weight);
                    store(weights + (i + r) * s.wide + c, weight);
                });
        product({pairs_of(grad + i * width), width / 2, 1}, rows, values, s.wide, s.wide, depth,
                [&](int64_t r, int64_t c, __m512 sum) { _mm512_storeu_ps(slopes + r * s.wide + c, sum); });
        for (int64_t r = 0; r < rows; r++) {
            const float *weight = exact + r * s.wide, *slope = slopes + r * s.wide;
            __m512 sum = _mm512_setzero_ps();
            for (int64_t c = 0; c < s.wide; c += 16) sum = _mm512_fmadd_ps(_mm512_loadu_ps(weight + c), _mm512_loadu_ps(slope + c), sum);
            // From these numbers and not from the rounded output: where one weight is nearly 1 the difference is small.
            const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
            for (int64_t c = 0; c < s.wide; c += 16)
                store(scores + (i + r) * s.wide + c, _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(slope + c), mean), _mm512_mul_ps(_mm512_loadu_ps(weight + c), times)));
        }
        product({pairs_of(scores + i * s.wide), s.wide / 2, 1}, rows, by_keys, s.d, s.d, even,
                [&](int64_t r, int64_t c, __m512 sum) { store(to + (i + r) * s.token + c, sum); });
    }
    interleave_rows(weights, s.wide, s.n, s.wide, turned_weights);
    interleave_rows(scores, s.wide, s.n, s.wide, turned_scores);
    for (int64_t j = 0; j < s.n; j += ROWS) {
        const int64_t rows = least(ROWS, s.n - j);
        product({turned_scores + j, 1, s.wide}, rows, by_queries, s.d, s.d, even,
                [&](int64_t r, int64_t c, __m512 sum) { store(to + (j + r) * s.token + width + c, sum); });
        product({turned_weights + j, 1, s.wide}, rows, by_grad, s.d, s.d, even,
                [&](int64_t r, int64_t c, __m512 sum) { store(to + (j + r) * s.token + 2 * width + c, sum); });
    }
}

Shape shape(int64_t n, int64_t h, int64_t d) { return {n, d, 3 * h * d, over(n, 16) * 16}; }

}  // namespace

extern "C" {

// qkv (b, n, 3, h, d) -> out (b, n, h, d); logs (b, h, n), which the backward pass needs, may be null.
void attention(const bf16 *qkv, int64_t b, int64_t n, int64_t h, int64_t d, float scale, bf16 *out, float *logs, int threads) {
    const Shape s = shape(n, h, d);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t q = 0; q < b * h; q++) {
        const int64_t image = q / h, head = q % h * d;
        const int64_t next = least(q + 1, b * h - 1);
        forward(qkv + image * n * s.token + head, qkv + next / h * n * s.token + next % h * d, s, h * d, scale, out + image * n * h * d + head, logs ? logs + q * n : nullptr);
    }
}

// The gradient for qkv from that for out.
void attention_backward(const bf16 *grad, const bf16 *qkv, const float *logs, int64_t b, int64_t n, int64_t h, int64_t d, float scale, bf16 *to, int threads) {
    const Shape s = shape(n, h, d);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t q = 0; q < b * h; q++) {
        const int64_t image = q / h, head = q % h * d, narrow = image * n * h * d + head, wide = image * n * s.token + head;
        const int64_t next = least(q + 1, b * h - 1), next_narrow = next / h * n * h * d + next % h * d, next_wide = next / h * n * s.token + next % h * d;
        backward(grad + narrow, qkv + wide, logs + q * n, next_narrow - narrow, next_wide - wide, s, h * d, scale, to + wide);
    }
}
}
