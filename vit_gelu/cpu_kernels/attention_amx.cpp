// softmax(q·kᵀ·scale)·v and its gradients for bfloat16 with float32 sums, by the tiles of AMX: one image and head at a
// time, whose matrices stay in the second-level cache. Queries, keys and values lie as the qkv projection leaves them,
// (b, n, 3, h, d); d is a multiple of 16. The backward pass computes the weights again from the logarithm of each row's
// sum (Dao et al. 2022, arXiv:2205.14135, appendix B.2), in base 2; it has them turned, a row per key, so that what
// belongs to a query is a vector.

#include "tiles.h"

namespace {

struct Shape {
    int64_t n, d, token;        // token: numbers from one token to the next in qkv
    int64_t deep, rows, summed;  // d up to a whole step, n up to a whole tile, n up to a whole step
};

// (n, d) -> (rows, deep), filled up with zeros.
void fill(const bf16 *from, int64_t stride, const Shape &s, bf16 *to) {
    for (int64_t r = 0; r < s.rows; r++, to += s.deep)
        for (int64_t c = 0; c < s.deep; c += 32)
            _mm512_store_si512(to + c, _mm512_maskz_loadu_epi16(r < s.n ? first32(s.d - c) : 0, from + least(r, s.n - 1) * stride + c));
}

// A filled matrix as right factor of a sum over d: (rows, deep) -> (deep / 2, rows) pairs.
void turn(const bf16 *from, const Shape &s, uint32_t *to) {
    for (int64_t c = 0; c < s.deep; c += 32)
        for (int64_t r = 0; r < s.rows; r += 16) {
            __m512i x[16];
            for (int64_t i = 0; i < 16; i++) x[i] = _mm512_load_si512(from + (r + i) * s.deep + c);
            transpose(x);
            for (int64_t i = 0; i < 16; i++) _mm512_store_si512(to + (c / 2 + i) * s.rows + r, x[i]);
        }
}

// As right factor of a sum over tokens: (n, d) -> (summed / 2, d) pairs, zeros past n.
void interleave_tokens(const bf16 *from, int64_t stride, const Shape &s, uint32_t *to) {
    interleave_rows(from, stride, s.n, s.d, to);
    const int64_t done = over(s.n, 2) * s.d;
    memset(to + done, 0, (s.summed / 2 * s.d - done) * sizeof(uint32_t));
}

// 32 bfloat16 numbers from sums and the sixteen after them, the first `count` of them.
inline __m512i rounded(const float *sums, __m512 by, int64_t count) {
    const __m512 low = _mm512_maskz_loadu_ps(first16(count), sums), high = _mm512_maskz_loadu_ps(first16(count - 16), sums + 16);
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(high, by), _mm512_mul_ps(low, by));
}

// Rows of sums to where tokens have them.
void write(const float *sums, int64_t rows, const Shape &s, bf16 *to, int64_t stride, bool far) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < s.d; c += 32)
            put(to + r * stride + c, first32(s.d - c), rounded(sums + r * s.d + c, _mm512_set1_ps(1.0f), s.d - c), far);
}

void forward(const bf16 *qkv, Ahead ahead, const Shape &s, int64_t width, float scale, bool far, bf16 *out, float *logs) {
    static thread_local Scratch scratch;
    const int64_t wide = whole(s.rows, SIDE);  // of a row of scores: whole blocks, of which the last may be half used
    float *scores = reinterpret_cast<float *>(scratch.pairs(SIDE * wide + SIDE * whole(s.d, SIDE) + s.rows * s.deep / 2 * 3 + s.summed * s.d / 2 + SIDE * s.summed / 2));
    float *sums = scores + SIDE * wide;
    uint32_t *keys = reinterpret_cast<uint32_t *>(sums + SIDE * whole(s.d, SIDE)), *values = keys + s.rows * s.deep / 2;
    bf16 *queries = reinterpret_cast<bf16 *>(values + s.summed * s.d / 2), *filled = queries + s.rows * s.deep, *weights = filled + s.rows * s.deep;
    fill(qkv, s.token, s, queries);
    fill(qkv + width, s.token, s, filled);
    turn(filled, s, keys);
    interleave_tokens(qkv + 2 * width, s.token, s, values);
    const __m512 by = _mm512_set1_ps(scale * 1.44269504f);
    for (int64_t i = 0; i < s.n; i += SIDE) {
        const int64_t rows = least(SIDE, s.n - i), high = over(rows, 16);
        blocks(queries + i * s.deep, s.deep, high, keys, s.rows, s.rows / 16, s.deep / STEP, scores, wide);
        float total[SIDE];
        for (int64_t r = 0; r < rows; r++) {
            ahead.step();
            float *row = scores + r * wide;
            __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
            for (int64_t c = 0; c < s.n; c += 16) {
                const __m512 x = _mm512_mul_ps(_mm512_load_ps(row + c), by);
                _mm512_store_ps(row + c, x);
                most = _mm512_mask_max_ps(most, first16(s.n - c), most, x);
            }
            most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
            for (int64_t c = 0; c < s.summed; c += 16) {
                const __mmask16 mask = first16(s.n - c);
                const __m512 x = mask ? _mm512_maskz_mov_ps(mask, power(_mm512_sub_ps(_mm512_load_ps(row + c), most))) : _mm512_setzero_ps();
                sum = _mm512_add_ps(sum, x);
                store(weights + r * s.summed + c, x);
            }
            total[r] = _mm512_reduce_add_ps(sum);
            if (logs) logs[i + r] = _mm512_cvtss_f32(most);
        }
        for (int64_t r = 0; logs && r < rows; r++) logs[i + r] += log2f(total[r]);
        blocks(weights, s.summed, high, values, s.d, s.d / 16, s.summed / STEP, sums, s.d);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < s.d; c += 32)
                put(out + (i + r) * width + c, first32(s.d - c), rounded(sums + r * s.d + c, _mm512_set1_ps(1.0f / total[r]), s.d - c), far);
    }
}

void backward(const bf16 *grad, const bf16 *qkv, const float *logs, Ahead ahead, const Shape &s, int64_t width, float scale, bool far, bf16 *to) {
    static thread_local Scratch scratch;
    const int64_t wide = whole(s.rows, SIDE), square = s.rows * s.summed, filled = s.rows * s.deep, by_token = s.summed * s.d / 2;
    float *weights = reinterpret_cast<float *>(scratch.pairs(2 * wide * wide + 2 * wide + SIDE * whole(s.d, SIDE) + 3 * filled + 3 * by_token + 2 * square));
    float *slopes = weights + wide * wide, *means = slopes + wide * wide, *bounds = means + wide, *sums = bounds + wide;
    bf16 *keys = reinterpret_cast<bf16 *>(sums + SIDE * whole(s.d, SIDE)), *values = keys + filled, *spare = values + filled;
    uint32_t *queries = reinterpret_cast<uint32_t *>(spare + filled), *grads = queries + filled / 2;
    uint32_t *by_queries = grads + filled / 2, *by_grads = by_queries + by_token, *by_keys = by_grads + by_token;
    bf16 *turned_weights = reinterpret_cast<bf16 *>(by_keys + by_token), *turned_scores = turned_weights + square;
    fill(qkv, s.token, s, spare);
    turn(spare, s, queries);
    fill(grad, width, s, spare);
    turn(spare, s, grads);
    fill(qkv + width, s.token, s, keys);
    fill(qkv + 2 * width, s.token, s, values);
    interleave_tokens(qkv, s.token, s, by_queries);
    interleave_tokens(grad, width, s, by_grads);
    interleave_tokens(qkv + width, s.token, s, by_keys);
    for (int64_t c = 0; c < s.rows; c += 16) {
        _mm512_store_ps(bounds + c, _mm512_maskz_loadu_ps(first16(s.n - c), logs + c));
        _mm512_store_ps(means + c, _mm512_setzero_ps());
    }
    const __m512 by = _mm512_set1_ps(scale * 1.44269504f), times = _mm512_set1_ps(scale);
    for (int64_t j = 0; j < s.rows; j += SIDE) {
        const int64_t rows = least(SIDE, s.n - j), high = over(rows, 16);
        float *weight = weights + j * wide, *slope = slopes + j * wide;
        blocks(keys + j * s.deep, s.deep, high, queries, s.rows, s.rows / 16, s.deep / STEP, weight, wide);
        blocks(values + j * s.deep, s.deep, high, grads, s.rows, s.rows / 16, s.deep / STEP, slope, wide);
        for (int64_t r = 0; r < 16 * high; r++, weight += wide, slope += wide) {
            if (r < rows) ahead.step();
            for (int64_t c = 0; c < s.summed; c += 16) {
                const __mmask16 mask = r < rows ? first16(s.n - c) : 0;
                bf16 *place = turned_weights + (j + r) * s.summed + c;
                if (!mask) {
                    _mm256_storeu_si256((__m256i *)place, _mm256_setzero_si256());
                    continue;
                }
                const __m512 x = _mm512_maskz_mov_ps(mask, power(_mm512_fmsub_ps(_mm512_load_ps(weight + c), by, _mm512_load_ps(bounds + c))));
                _mm512_store_ps(weight + c, x);
                store(place, x);
                // From these numbers and not from the rounded output: where one weight is nearly 1 the difference is small.
                _mm512_store_ps(means + c, _mm512_fmadd_ps(x, _mm512_load_ps(slope + c), _mm512_load_ps(means + c)));
            }
        }
    }
    for (int64_t j = 0; j < s.rows; j++)
        for (int64_t c = 0; c < s.summed; c += 16) {
            const __mmask16 mask = j < s.n ? first16(s.n - c) : 0;
            __m512 x = _mm512_setzero_ps();
            if (mask) x = _mm512_maskz_mul_ps(mask, _mm512_sub_ps(_mm512_load_ps(slopes + j * wide + c), _mm512_load_ps(means + c)), _mm512_mul_ps(_mm512_load_ps(weights + j * wide + c), times));
            store(turned_scores + j * s.summed + c, x);
        }
    for (int64_t j = 0; j < s.n; j += SIDE) {
        const int64_t rows = least(SIDE, s.n - j), high = over(rows, 16);
        blocks(turned_scores + j * s.summed, s.summed, high, by_queries, s.d, s.d / 16, s.summed / STEP, sums, s.d);
        write(sums, rows, s, to + j * s.token + width, s.token, far);
        blocks(turned_weights + j * s.summed, s.summed, high, by_grads, s.d, s.d / 16, s.summed / STEP, sums, s.d);
        write(sums, rows, s, to + j * s.token + 2 * width, s.token, far);
    }
    bf16 *scores = turned_weights;  // no longer needed
    for (int64_t i = 0; i < s.rows; i += 16)
        for (int64_t k = 0; k < s.summed; k += STEP) {
            __m512i x[16];
            for (int64_t p = 0; p < 16; p++) {  // rows k + 2p and the next of sixteen columns, as pairs
                const int64_t row = k + 2 * p;
                const bf16 *place = turned_scores + least(row, s.rows - 2) * s.summed + i;
                const __mmask16 mask = row < s.rows ? 0xffff : 0;
                x[p] = pairs_of_rows(place, place + s.summed, mask, mask);
            }
            transpose(x);
            for (int64_t p = 0; p < 16; p++) _mm512_store_si512(scores + (i + p) * s.summed + k, x[p]);
        }
    for (int64_t i = 0; i < s.n; i += SIDE) {
        const int64_t rows = least(SIDE, s.n - i), high = over(rows, 16);
        blocks(scores + i * s.summed, s.summed, high, by_keys, s.d, s.d / 16, s.summed / STEP, sums, s.d);
        write(sums, rows, s, to + i * s.token, s.token, far);
    }
}

Shape shape(int64_t n, int64_t h, int64_t d) { return {n, d, 3 * h * d, whole(d, STEP), whole(n, 16), whole(n, STEP)}; }

// A head's share of the next image, which lies in one piece; none after the last.
Ahead::Rows share(const bf16 *first, int64_t numbers, int64_t image, int64_t images, int64_t head, int64_t heads) {
    const int64_t part = over(over(numbers, heads), 32) * 32;
    return {first + (image + 1) * numbers + head * part, 0, least(part, numbers - head * part), image + 1 < images && head * part < numbers};
}

}  // namespace

extern "C" {

// qkv (b, n, 3, h, d) -> out (b, n, h, d); logs (b, h, n), which the backward pass needs, may be null.
void attention(const bf16 *qkv, int64_t b, int64_t n, int64_t h, int64_t d, float scale, bf16 *out, float *logs, int threads) {
    const Shape s = shape(n, h, d);
    const bool far = d % 32 == 0 && past_caches(out, b * n * h * d);
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
#pragma omp for schedule(static) nowait
        for (int64_t q = 0; q < b * h; q++) {
            const int64_t image = q / h, head = q % h;
            Ahead ahead{{share(qkv, n * s.token, image, b, head, h)}, 0};
            ahead.each = double(ahead.left[0].lines()) / n;
            forward(qkv + image * n * s.token + head * d, ahead, s, h * d, scale, far, out + image * n * h * d + head * d, logs ? logs + q * n : nullptr);
        }
        _mm_sfence();
    }
}

// The gradient for qkv from that for out.
void attention_backward(const bf16 *grad, const bf16 *qkv, const float *logs, int64_t b, int64_t n, int64_t h, int64_t d, float scale, bf16 *to, int threads) {
    const Shape s = shape(n, h, d);
    const bool far = d % 32 == 0 && past_caches(to, b * n * s.token);
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
#pragma omp for schedule(static) nowait
        for (int64_t q = 0; q < b * h; q++) {
            const int64_t image = q / h, head = q % h, narrow = image * n * h * d + head * d, wide = image * n * s.token + head * d;
            Ahead ahead{{share(qkv, n * s.token, image, b, head, h), share(grad, n * h * d, image, b, head, h)}, 0};
            ahead.each = double(ahead.left[0].lines() + ahead.left[1].lines()) / n;
            backward(grad + narrow, qkv + wide, logs + q * n, ahead, s, h * d, scale, far, to + wide);
        }
        _mm_sfence();
    }
}
}
