/* The choice of tokens on a CPU: temperature, top-k, top-p, min-p and a draw, row by row (generate/sample.py has the same
 * as operations of torch).
 *
 * Ids are ranked by their logits, of equal ones the lower id first. What top-k, top-p and min-p keep are the first ids in
 * this order, and a draw is the id at which the cumulative weight reaches some sum: so that each of them looks for one
 * place in the order, which is found by bisection, without sorting. A row does not depend on the other rows. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "shared.h"

enum { LANES = 16, BLOCK = 512, SORTED = 32 };
static const float FARTHEST = 87.0f; /* ids so far below the largest have no weight: exp(-87) is the least in float32 */
typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t whole __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(sizeof(int32_t)), may_alias));

/* A row of logits. Both arrays are padded to whole vectors, with ids infinitely far below and without weight. */
struct row {
    long V, padded;
    float *below;  /* how far each logit is below the largest one, divided by the temperature */
    float *weight; /* exp(-below) */
};

/* Of the ids that are at most `limit` below the largest logit: their weight, and in `count` their number. */
static double weighed(const struct row *row, float limit, long *count)
{
    whole n = {0};
    double sum = 0.0;
    for (long first = 0; first < row->padded; first += BLOCK) {
        const long end = first + BLOCK < row->padded ? first + BLOCK : row->padded;
        lanes sums = {0}; /* float32 is exact enough for so few */
        for (long j = first; j < end; j += LANES) {
            const whole inside = *(const lanes *)(row->below + j) <= limit;
            n -= inside;
            sums += (lanes)(*(const whole *)(row->weight + j) & inside);
        }
        for (int i = 0; i < LANES; i++) sum += sums[i];
    }
    *count = 0;
    for (int i = 0; i < LANES; i++) *count += n[i];
    return sum;
}

/* The first id by rank at which the sum over the ids up to it reaches `wanted`, or the last one if none does. The sum is
 * that of the weights, or of ones if `by_count`. `mass` gets the weight of these ids. */
static long place(const struct row *row, float farthest, double wanted, int by_count, double *mass)
{
    /* the place is among the `inside` ids that are more than `low` and at most `high` below the largest logit; of those
     * before them: */
    float low = -1.0f, high = farthest;
    double weight = 0.0;
    long count = 0, inside;
    weighed(row, high, &inside);
    while (inside > SORTED) {
        const float middle = low < 0.0f ? high / 2 : low + (high - low) / 2;
        if (middle >= high || middle <= low) break; /* neighbouring numbers: all ids inside are equal */
        long n;
        const double w = weighed(row, middle, &n);
        if ((by_count ? (double)n : w) < wanted) inside -= n - count, low = middle, weight = w, count = n;
        else inside = n - count, high = middle;
    }

    /* these by rank; equal ones are in order already */
    const int equal = inside > SORTED;
    long ranked[SORTED], n = 0, last = 0;
    for (long first = 0; first < row->padded; first += LANES) {
        const lanes below = *(const lanes *)(row->below + first);
        const whole between = (below > low) & (below <= high);
        int some = 0;
        for (int i = 0; i < LANES; i++) some |= between[i];
        if (!some) continue;
        for (long j = first; j < first + LANES; j++) {
            if (!between[j - first]) continue;
            if (equal) {
                last = j, weight += row->weight[j], count++;
                if ((by_count ? (double)count : weight) >= wanted) goto found;
                continue;
            }
            long k = n++;
            for (; k > 0 && row->below[ranked[k - 1]] > row->below[j]; k--) ranked[k] = ranked[k - 1];
            ranked[k] = j;
        }
    }
    for (long k = 0; k < n; k++) {
        last = ranked[k], weight += row->weight[last], count++;
        if ((by_count ? (double)count : weight) >= wanted) break;
    }
found:
    *mass = weight;
    return last;
}

/* The first id in the order of ids at which the cumulative weight reaches a share of the total, of ids with at least the
 * weight `least`. */
static long drawn_of_all(const struct row *row, double share, float least)
{
    enum { AT_ONCE = 64 };
    const float *weight = row->weight;
    double before = 0.0, total = 0.0;
    for (int again = 0; again < 2; again++) { /* first for the total */
        const double wanted = again ? share * total : INFINITY;
        long last = -1;
        before = 0.0;
        for (long first = 0; first < row->V; first += AT_ONCE) {
            const long end = first + AT_ONCE < row->V ? first + AT_ONCE : row->V;
            double part = 0.0;
#pragma omp simd reduction(+ : part)
            for (long j = first; j < end; j++) part += weight[j] >= least ? weight[j] : 0.0f;
            if (before + part < wanted) {
                before += part;
                continue;
            }
            for (long j = first; j < end; j++) {
                if (weight[j] < least || weight[j] == 0.0f) continue;
                last = j, before += weight[j];
                if (before >= wanted) return j;
            }
            if (last >= 0) return last; /* rounding */
        }
        total = before;
    }
    return 0; /* nothing has a weight: the logits are not numbers */
}

/* One token of a row of logits. */
static long chosen(struct row *row, const float *restrict logits, float temperature, long top_k, float top_p, float min_p,
                   double drawn)
{
    const long V = row->V;
    float largest = -INFINITY, smallest = INFINITY;
#pragma omp simd reduction(max : largest) reduction(min : smallest)
    for (long j = 0; j < V; j++) {
        largest = logits[j] > largest ? logits[j] : largest;
        smallest = logits[j] < smallest ? logits[j] : smallest;
    }
    if (temperature == 0.0f) {
        long j = 0;
        while (j < V - 1 && logits[j] != largest) j++;
        return j;
    }

    float *restrict below = row->below, *restrict weight = row->weight;
    for (long j = 0; j < V; j++) {
        below[j] = (largest - logits[j]) / temperature;
        weight[j] = below[j] <= FARTHEST ? exponential(-below[j]) : 0.0f;
    }
    if (top_k == 0 && top_p >= 1.0f) return drawn_of_all(row, drawn, min_p);

    /* each limit keeps the first ids by rank, of some weight together */
    const float range = (largest - smallest) / temperature, farthest = range < FARTHEST ? range : FARTHEST;
    long count;
    double kept = weighed(row, farthest, &count), within;
    if (top_k > 0 && top_k < count) place(row, farthest, (double)top_k, 1, &kept);
    if (top_p < 1.0f) place(row, farthest, top_p * kept, 0, &kept);
    if (min_p > 0.0f) within = weighed(row, -logf(min_p), &count), kept = within < kept ? within : kept;
    return place(row, farthest, drawn * kept, 0, &within);
}

/* One token per row of logits (rows, V). Returns 1 if it gets no memory. */
int sample_tokens(const float *logits, const float *temperature, const int64_t *top_k, const float *top_p,
                  const float *min_p, const double *drawn, int64_t *tokens, long rows, long V, int threads)
{
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        const long padded = (V + LANES - 1) / LANES * LANES;
        struct row row = {V, padded, malloc(sizeof(float) * padded), malloc(sizeof(float) * padded)};
        failed = !row.below || !row.weight;
        for (long j = V; j < padded && !failed; j++) row.below[j] = INFINITY, row.weight[j] = 0.0f;
#pragma omp for schedule(static)
        for (long i = 0; i < rows; i++)
            if (!failed)
                tokens[i] = chosen(&row, logits + i * V, temperature[i], (long)top_k[i], top_p[i], min_p[i], drawn[i]);
        free(row.below), free(row.weight);
    }
    return failed;
}
