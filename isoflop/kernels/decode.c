/* One decoding step on a CPU in float32: products of few rows with a weight matrix, and attention of one new position per
 * row to the cached ones.
 *
 * The sum of an element is always taken in the same order, whatever the number of rows, the place of a row among them and
 * the number of threads, so that a row gives the same bits whatever its neighbours are. The caller (decoding.py) checks
 * types and shapes. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "shared.h"

/* Vectors of LANES numbers. A tile of ROWS x WIDE sums stays in registers: 24 of the 32 that AVX-512 has, or 12 of 16. */
#ifdef __AVX512F__
enum { LANES = 16, ROWS = 8 };
#else
enum { LANES = 8, ROWS = 4 };
#endif
/* DEEPEST: inputs at once, even of one row, which bounds how far ahead is prefetched. SOON: positions of attention ahead:
 * after the keys the values, then the next row's keys. */
enum { WIDE = 3, GROUPS = 4, NEAR = 4096, DEEPEST = 512, SOON = 24 };
typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef float eight __attribute__((vector_size(8 * sizeof(float)), aligned(sizeof(float)), may_alias));

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t places __attribute__((vector_size(8 * sizeof(int32_t))));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif

static inline long smaller(long a, long b) { return a < b ? a : b; }

/* The first `n` of LANES numbers, and zeros. */
static inline lanes first_of(const float *from, long n)
{
    float padded[LANES] = {0};
    for (long k = 0; k < n; k++) padded[k] = from[k];
    return *(const lanes *)padded;
}

/* sums (ROWS x WIDE vectors) += the products of `depth` inputs, lane by lane, or = if `fresh`; rows of x are `inputs`
 * apart, those of w `apart`. The numbers of w that are used next are prefetched from `ahead` on, by `step` per vector. */
static inline __attribute__((always_inline)) void tile(const int rows, const int wide, const float *x, long inputs,
                                                       const float *w, long apart, lanes *sums, long depth, int fresh,
                                                       const float *ahead, long step)
{
    lanes sum[ROWS][WIDE];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) sum[i][j] = fresh ? (lanes){0} : sums[i * WIDE + j];
    for (long d = 0; d + LANES <= depth; d += LANES, ahead += step) {
        lanes weights[WIDE];
        for (int j = 0; j < wide; j++) {
            __builtin_prefetch(ahead + j * apart);
            weights[j] = *(const lanes *)(w + j * apart + d);
        }
        for (int i = 0; i < rows; i++) {
            const lanes in = *(const volatile lanes *)(x + i * inputs + d); /* or it would be read for each of `wide` */
            for (int j = 0; j < wide; j++) sum[i][j] += weights[j] * in;
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) sums[i * WIDE + j] = sum[i][j];
}

/* `tile` with constant sizes, for the compiler to keep its sums in registers. */
static void tile_of(long rows, int wide, const float *x, long inputs, const float *w, long apart, lanes *sums,
                    long depth, int fresh, const float *ahead, long step)
{
#define CASE(n)                                                                                                        \
    case n:                                                                                                            \
        if (wide == WIDE) tile(n, WIDE, x, inputs, w, apart, sums, depth, fresh, ahead, step);                         \
        else tile(n, 1, x, inputs, w, apart, sums, depth, fresh, ahead, step);                                         \
        break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4)
#ifdef __AVX512F__
        CASE(5) CASE(6) CASE(7) CASE(8)
#endif
    }
#undef CASE
}

/* The lanes of a sum, added to eight. */
static inline eight folded(const lanes *sum)
{
    const eight *parts = (const eight *)sum;
    eight added = parts[0];
    for (int k = 1; k < LANES / 8; k++) added += parts[k];
    return added;
}

/* The totals of eight sums, `WIDE` vectors apart. */
static inline eight totals(const lanes *sums)
{
    eight pair[4], four[2];
    for (int k = 0; k < 4; k++) {
        const eight a = folded(sums + 2 * k * WIDE), b = folded(sums + (2 * k + 1) * WIDE);
        pair[k] = SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int k = 0; k < 2; k++) {
        const eight a = pair[2 * k], b = pair[2 * k + 1];
        four[k] = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return SHUFFLE(four[0], four[1], 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(four[0], four[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* The outputs from `from` to `to` of up to GROUPS * ROWS rows. Memory is fastest where few streams are read from end to
 * end, so a tile's outputs are `full` apart: each of the WIDE streams goes through a part of w. The rows' inputs are
 * taken in pieces of NEAR numbers, which stay in the nearest cache, for all groups of rows in turn. Each group prefetches
 * its part of the next piece, so that memory never waits for the arithmetic. */
static void strip(const float *x, const float *w, const float *bias, float *y, long rows, long inputs, long outputs,
                  long stride, int add, long from, long to)
{
    const long groups = (rows + ROWS - 1) / ROWS, full = (to - from) / WIDE, single = (to - from) % WIDE;
    const long most = smaller(DEEPEST, NEAR / rows), pieces = (inputs + most - 1) / most;
    const long piece = ((inputs + pieces - 1) / pieces + LANES - 1) / LANES * LANES;
    const long rest = inputs % LANES;
    _Alignas(64) lanes sums[GROUPS * ROWS + 8][WIDE] = {0}; /* `totals` reads eight rows */
    for (long k = 0; k < full + single; k++) {
        const int wide = k < full ? WIDE : 1;
        const long c = k < full ? from + k : to - (full + single - k);
        for (long d = 0; d < inputs; d += piece)
            for (long g = 0; g < groups; g++) {
                const float *here = w + c * stride + d, *ahead = here + piece + piece * g / groups;
                tile_of(smaller(ROWS, rows - g * ROWS), wide, x + g * ROWS * inputs + d, inputs, here, full * stride,
                        sums[g * ROWS], smaller(piece, inputs - d), d == 0, ahead, LANES / groups);
            }
        for (long i = 0; rest && i < rows; i++)
            for (int j = 0; j < wide; j++)
                sums[i][j] += first_of(w + (c + j * full) * stride + inputs - rest, rest) *
                              first_of(x + (i + 1) * inputs - rest, rest);
        for (int j = 0; j < wide; j++) {
            const long at = c + j * full;
            for (long i = 0; i < rows; i += ROWS) {
                const eight total = totals(&sums[i][j]);
                for (long k = 0; k < smaller(ROWS, rows - i); k++) {
                    float *out = y + (i + k) * outputs + at;
                    *out = (add ? *out : 0.0f) + (bias ? bias[at] : 0.0f) + total[k];
                }
            }
        }
    }
}

/* y (rows, outputs) = x (rows, inputs) w^T + bias, or + y if `add`. Rows of w (outputs, inputs) are `stride` apart; a
 * null bias is none. Weights are read once from memory for every GROUPS * ROWS rows. Threads divide the outputs. */
void decode_product(const float *x, const float *w, const float *bias, float *y, long rows, long inputs, long outputs,
                    long stride, int add, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++)
        for (long r = 0; r < rows; r += GROUPS * ROWS)
            strip(x + r * inputs, w, bias, y + r * outputs, smaller(GROUPS * ROWS, rows - r), inputs, outputs, stride,
                  add, outputs * part / threads, outputs * (part + 1) / threads);
}

/* y = (x - mean(x)) / sqrt(variance(x) + eps) gain + bias, row by row; a null bias is none. Rows are few, and threads
 * would take longer to start. */
void decode_layer_norm(const float *x, const float *gain, const float *bias, float *y, long rows, long width, float eps,
                       int threads)
{
    (void)threads;
    for (long i = 0; i < rows; i++) {
        const float *restrict row = x + i * width;
        float *restrict out = y + i * width;
        float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (long k = 0; k < width; k++) sum += row[k];
        const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
        for (long k = 0; k < width; k++) squares += (row[k] - mean) * (row[k] - mean);
        const float scale = 1.0f / sqrtf(squares / width + eps);
        for (long k = 0; k < width; k++) out[k] = (row[k] - mean) * scale * gain[k] + (bias ? bias[k] : 0.0f);
    }
}

/* x = gelu(x), by the approximation with tanh: x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3). */
void decode_gelu_tanh(float *x, long count, int threads)
{
#pragma omp parallel for simd schedule(static) num_threads(threads) if (threads > 1)
    for (long k = 0; k < count; k++) {
        const float u = 0.7978845608f * (x[k] + 0.044715f * x[k] * x[k] * x[k]);
        x[k] /= 1.0f + exponential(-2.0f * u);
    }
}

/* One head of queries or keys: divided by its root mean square if eps >= 0, times a gain, rotated, into `out`. */
static inline void turn(const float *restrict in, float *restrict out, const float *gain, float eps, const float *cos,
                        const float *sin, int interleaved, long width, float scale)
{
    float squares = 0.0f;
    if (eps >= 0.0f) {
#pragma omp simd reduction(+ : squares)
        for (long k = 0; k < width; k++) squares += in[k] * in[k];
        scale /= sqrtf(squares / width + eps);
    }
    for (long k = 0; k < width; k++) out[k] = in[k] * (gain ? scale * gain[k] : scale);
    if (!cos) return;
    const long half = width / 2, step = interleaved ? 2 : 1, apart = interleaved ? 1 : half;
    for (long k = 0; k < half; k++) {
        const float a = out[k * step], b = out[k * step + apart];
        out[k * step] = a * cos[k * step] - b * sin[k];
        out[k * step + apart] = b * cos[k * step + apart] + a * sin[k];
    }
}

/* The attention of one new position per row, from its projections qkv (rows, (heads + 2 groups) width): its keys and
 * values are written to column `column` of the cache (slots, groups, room, width each); y (rows, heads width) is the mean
 * of the values of the last lengths[row] columns, weighted by softmax(scale q k).
 *
 * gain: of the norm, (heads + groups, width), or null; eps < 0: no norm. cos (rows or 1, width) and sin (the same, width / 2): of
 * each row if `each`, or null. values_added (rows, groups width), or null, times gate (rows, groups), or null, is added to the values.
 * Returns 1 without memory, else 0. */
int decode_attend(float *qkv, const float *gain, float eps, const float *cos, const float *sin, int each, int interleaved,
                  const float *values_added, const float *gate, float *keys, float *values, float *y,
                  const int64_t *lengths, long rows, long heads, long groups, long width, long room, long column,
                  float scale, int threads)
{
    const long shared = heads / groups;
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *restrict score = malloc((column + 1 + width) * sizeof(float));
        if (!score) failed = 1;
#pragma omp for schedule(dynamic, 2)
        for (long at = 0; at < rows * groups; at++) {
            if (!score) continue;
            const long r = at / groups, g = at % groups, length = lengths[r], first = column + 1 - length;
            const long next = at + 1 < rows * groups ? at + 1 : at, next_first = column + 1 - lengths[next / groups];
            const float *next_key = keys + (next * room + next_first) * width;
            float *row = qkv + r * (heads + 2 * groups) * width, *query = score + column + 1;
            const float *c = cos ? cos + (each ? r * width : 0) : 0, *s = sin ? sin + (each ? r * width / 2 : 0) : 0;
            float *k_new = keys + ((r * groups + g) * room + column) * width;
            float *v_new = values + ((r * groups + g) * room + column) * width;

            /* the new key and value */
            turn(row + (heads + g) * width, k_new, gain ? gain + (heads + g) * width : 0, eps, c, s, interleaved, width,
                 1.0f);
            const float *v_in = row + (heads + groups + g) * width;
            const float *more = values_added ? values_added + (r * groups + g) * width : 0;
            const float share = gate ? gate[r * groups + g] : 1.0f;
            for (long k = 0; k < width; k++) v_new[k] = v_in[k] + (more ? share * more[k] : 0.0f);

            for (long h = g * shared; h < (g + 1) * shared; h++) {
                turn(row + h * width, query, gain ? gain + h * width : 0, eps, c, s, interleaved, width, scale);
                const float *restrict key = keys + ((r * groups + g) * room + first) * width;
                const float *restrict value = values + ((r * groups + g) * room + first) * width;
                float largest = -INFINITY, total = 0.0f;
                for (long j = 0; j < length; j++) {
                    float dot = 0.0f;
                    const long later = j + SOON;
                    const float *soon = later < length ? key + later * width : value + (later - length) * width;
                    for (long k = 0; k < width; k += 16) __builtin_prefetch(soon + k);
#pragma omp simd reduction(+ : dot)
                    for (long k = 0; k < width; k++) dot += query[k] * key[j * width + k];
                    score[j] = dot;
                    largest = largest < dot ? dot : largest;
                }
#pragma omp simd reduction(+ : total)
                for (long j = 0; j < length; j++) {
                    score[j] = exponential(score[j] - largest);
                    total += score[j];
                }
                float *restrict out = y + (r * heads + h) * width;
                for (long k = 0; k < width; k++) out[k] = 0.0f;
                for (long j = 0; j < length; j++) {
                    const float weight = score[j] / total;
                    const long later = j + SOON;
                    const float *soon = later < length ? value + later * width : next_key + (later - length) * width;
                    for (long k = 0; k < width; k += 16) __builtin_prefetch(soon + k);
#pragma omp simd
                    for (long k = 0; k < width; k++) out[k] += weight * value[j * width + k];
                }
            }
        }
        free(score);
    }
    return failed;
}
