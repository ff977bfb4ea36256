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
enum { WIDE = 3, DEPTH = 32, AHEAD = 16 };
typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

static inline long smaller(long a, long b) { return a < b ? a : b; }

/* y (rows x wide vectors) += x w over `depth` inputs; x has ROWS numbers per input, rows of w are `stride` apart. */
static inline __attribute__((always_inline)) void tile(const int rows, const int wide, const float *restrict x,
                                                       const float *restrict w, long stride, float *restrict y,
                                                       long outputs, long depth)
{
    lanes sum[ROWS][WIDE];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) sum[i][j] = *(const lanes *)(y + i * outputs + j * LANES);
    for (long d = 0; d < depth; d++) {
        const float *row = w + d * stride;
        lanes weights[WIDE];
        for (int j = 0; j < wide; j++) {
            __builtin_prefetch(row + AHEAD * stride + j * LANES);
            weights[j] = *(const lanes *)(row + j * LANES);
        }
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < wide; j++) sum[i][j] += weights[j] * x[d * ROWS + i];
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) *(lanes *)(y + i * outputs + j * LANES) = sum[i][j];
}

/* `tile` with constant sizes, for the compiler to keep its sums in registers. */
static void tile_of(long rows, int wide, const float *x, const float *w, long stride, float *y, long outputs, long depth)
{
#define CASE(n)                                                                                                        \
    case n:                                                                                                            \
        if (wide == WIDE) tile(n, WIDE, x, w, stride, y, outputs, depth);                                              \
        else tile(n, 1, x, w, stride, y, outputs, depth);                                                              \
        break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4)
#ifdef __AVX512F__
        CASE(5) CASE(6) CASE(7) CASE(8)
#endif
    }
#undef CASE
}

/* y += x w of one group of up to ROWS rows and the outputs from `from` to `to`, over the inputs d .. d + depth. */
static void strip(const float *turned, const float *w, long stride, float *y, long rows, long outputs, long from, long to,
                  long d, long depth)
{
    const float *x = turned + d * ROWS, *weights = w + d * stride;
    long c = from;
    for (; c + WIDE * LANES <= to; c += WIDE * LANES)
        tile_of(rows, WIDE, x, weights + c, stride, y + c, outputs, depth);
    for (; c + LANES <= to; c += LANES) tile_of(rows, 1, x, weights + c, stride, y + c, outputs, depth);
    for (; c < to; c++)
        for (long i = 0; i < rows; i++) {
            float sum = y[i * outputs + c];
            for (long k = 0; k < depth; k++) sum += weights[k * stride + c] * x[k * ROWS + i];
            y[i * outputs + c] = sum;
        }
}

/* y (rows, outputs) = x (rows, inputs) w + bias, or + y if `add`. Rows of w (inputs, outputs) are `stride` apart; a null
 * bias is none. Weights are read once from memory, DEPTH inputs at a time. Threads divide the rows if there are many
 * groups of them, else the outputs. Returns 1 without memory, else 0. */
int decode_product(const float *x, const float *w, const float *bias, float *y, long rows, long inputs, long outputs,
                   long stride, int add, int threads)
{
    const long groups = (rows + ROWS - 1) / ROWS, unit = WIDE * LANES, units = (outputs + unit - 1) / unit;
    const int by_rows = groups >= 2 * threads;
    float *turned = malloc(groups * inputs * ROWS * sizeof(float));
    if (!turned) return 1;

#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (long g = 0; g < groups; g++) {
        const long own = smaller(ROWS, rows - g * ROWS);
        float *restrict to = turned + g * inputs * ROWS;
        for (long d = 0; d < inputs; d++)
            for (long i = 0; i < ROWS; i++) to[d * ROWS + i] = i < own ? x[(g * ROWS + i) * inputs + d] : 0.0f;
        for (long i = 0; i < own; i++) {
            float *restrict out = y + (g * ROWS + i) * outputs;
            if (!add && !bias) for (long c = 0; c < outputs; c++) out[c] = 0.0f;
            else if (!add) for (long c = 0; c < outputs; c++) out[c] = bias[c];
            else if (bias) for (long c = 0; c < outputs; c++) out[c] += bias[c];
        }
    }

#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        const long first = by_rows ? groups * part / threads : 0, last = by_rows ? groups * (part + 1) / threads : groups;
        const long from = by_rows ? 0 : units * part / threads * unit;
        const long to = by_rows ? outputs : smaller(outputs, units * (part + 1) / threads * unit);
        for (long d = 0; d < inputs; d += DEPTH)
            for (long c = from; c < to; c += unit)
                for (long g = first; g < last; g++)
                    strip(turned + g * inputs * ROWS, w, stride, y + g * ROWS * outputs, smaller(ROWS, rows - g * ROWS),
                          outputs, c, smaller(to, c + unit), d, smaller(DEPTH, inputs - d));
    }
    free(turned);
    return 0;
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
#pragma omp for schedule(dynamic, 8)
        for (long at = 0; at < rows * groups; at++) {
            if (!score) continue;
            const long r = at / groups, g = at % groups, length = lengths[r], first = column + 1 - length;
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
                float largest = -INFINITY, total = 0.0f;
                for (long j = 0; j < length; j++) {
                    float dot = 0.0f;
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
                const float *restrict value = values + ((r * groups + g) * room + first) * width;
                float *restrict out = y + (r * heads + h) * width;
                for (long k = 0; k < width; k++) out[k] = 0.0f;
                for (long j = 0; j < length; j++) {
                    const float weight = score[j] / total;
#pragma omp simd
                    for (long k = 0; k < width; k++) out[k] += weight * value[j * width + k];
                }
            }
        }
        free(score);
    }
    return failed;
}
