/* One frame of CSM on a CPU in float32: the depth decoder's loop with its draws, and the backbone's
 * step. `steps.py` calls it, `build.py` compiles it with the machine's own compiler.
 *
 * A call computes up to MOST rows, from their first to their last operation, on one thread. Each sum
 * of a row has the same order whatever the number of rows, so that an utterance is the same alone
 * and beside others. Weights are read once per call; they are stored in panels of PANEL columns,
 * [columns / PANEL][inputs][PANEL], because a core reads them at full speed only as one sequence.
 */
#include "vectors.h"

typedef struct {
    const float *norm1, *qkv, *out, *norm2, *gate_up, *down;
} Layer;

typedef struct {
    int64_t layers, width, inner, heads, kv_heads, dim;
    float eps, scale;
    const Layer *layer;
    const float *norm;
    const float *cos, *sin; /* [positions][dim] */
} Stack;

typedef struct {
    Stack stack;
    int64_t codebooks, codes, end_code, backbone_width;
    const float *projector;
    const float *const *embeddings; /* [codebooks - 1] of [codes][width] */
    const float *const *heads; /* [codebooks - 1], in panels */
} Depth;

typedef struct {
    Stack stack;
    int64_t codebooks, vocab, context, codes;
    const float *embedding; /* [codebooks * vocab][width] */
    const float *head; /* in panels */
} Backbone;

/* The state of all rows; a call works on rows[0] to rows[count - 1]. */
typedef struct {
    float *keys; /* [layers][2][rows][kv_heads][length][dim], values beside keys */
    int64_t all_rows, length;
    float *hidden; /* [rows][backbone width] */
    int64_t *position, *codes; /* [rows], [rows][codebooks] */
    const float *temperature; /* [rows][2] */
    const int64_t *top_k; /* [rows][2] */
    const int64_t *seed; /* [rows] */
    int64_t *frame; /* [rows] */
} State;

int64_t most_rows(void) { return MOST; }
int64_t panel(void) { return PANEL; }

/* Products ------------------------------------------------------------------------------------- */

/* One panel of x [depth][rows] times w -> y [rows][ys], or added to it. */
INLINE void tile(const int rows, const float *x, const float *w, int64_t depth, float *y, int64_t ys, int add)
{
    vec sum[2 * MOST];
#pragma GCC unroll 16
    for (int i = 0; i < 2 * rows; i++)
        sum[i] = add ? *(const vec *)(y + i / 2 * ys + i % 2 * WIDE) : (vec){0};
    for (int64_t k = 0; k < depth; k += 4, w += 4 * PANEL, x += 4 * rows) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const vec a = *(const vec *)(w + j * PANEL), b = *(const vec *)(w + j * PANEL + WIDE);
            __builtin_prefetch(w + (AHEAD + j) * PANEL);
            __builtin_prefetch(w + (AHEAD + j) * PANEL + WIDE);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                sum[2 * r] += x[j * rows + r] * a;
                sum[2 * r + 1] += x[j * rows + r] * b;
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 2 * rows; i++)
        *(vec *)(y + i / 2 * ys + i % 2 * WIDE) = sum[i];
}

#define CASE(R) \
    case R: \
        for (int64_t at = 0; at < columns; at += PANEL, w += depth * PANEL) \
            tile(R, x, w, depth, y + at, ys, add); \
        break;

/* x [depth][rows] times the panels w -> y [rows][ys], or added to it. */
static void product(int rows, const float *x, const float *w, int64_t depth, int64_t columns, float *y, int64_t ys, int add)
{
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4)
#if MOST > 4
        CASE(5) CASE(6) CASE(7) CASE(8)
#endif
    }
}

/* Between the products ------------------------------------------------------------------------- */

/* RMS norm of x [rows][width] -> y [width][rows]. */
static void norm(int rows, const float *x, const float *weight, int64_t width, float eps, float *y)
{
    for (int r = 0; r < rows; r++) {
        const float *row = x + r * width;
        vec sum = {0};
        for (int64_t k = 0; k < width; k += WIDE)
            sum += *(const vec *)(row + k) * *(const vec *)(row + k);
        const float by = 1.0f / sqrtf(total(sum) / (float)width + eps);
        for (int64_t k = 0; k < width; k++)
            y[k * rows + r] = row[k] * by * weight[k];
    }
}

/* x [rows][width] -> y [width][rows] */
static void turn(int rows, const float *x, int64_t xs, int64_t width, float *y)
{
    for (int r = 0; r < rows; r++)
        for (int64_t k = 0; k < width; k++)
            y[k * rows + r] = x[r * xs + k];
}

/* The hidden states of some rows -> y [width][rows] */
static void turn_hidden(const State *s, int count, const int64_t *rows, int64_t width, float *y)
{
    for (int r = 0; r < count; r++)
        for (int64_t k = 0; k < width; k++)
            y[k * count + r] = s->hidden[rows[r] * width + k];
}

/* SiLU of the first half times the second: x [rows][2 * inner] -> y [inner][rows], x is changed. */
static void gate(int rows, float *x, int64_t xs, int64_t inner, float *y)
{
    for (int r = 0; r < rows; r++)
        for (int64_t k = 0; k < inner; k += WIDE) {
            vec *low = (vec *)(x + r * xs + k);
            const vec up = *(const vec *)(x + r * xs + inner + k);
            *low = *low / (1.0f + power(-*low)) * up;
        }
    turn(rows, x, xs, inner, y);
}

/* Rotary position embedding of `heads` heads of x [heads][dim], in the half-split layout. */
static void rotate(float *x, int64_t heads, int64_t dim, const float *cos, const float *sin)
{
    const int64_t half = dim / 2;
    for (int64_t h = 0; h < heads; h++, x += dim)
        for (int64_t i = 0; i < half; i++) {
            const float low = x[i], high = x[half + i];
            x[i] = low * cos[i] - high * sin[i];
            x[half + i] = high * cos[half + i] + low * sin[half + i];
        }
}

/* Attention of one query head over n positions of keys and values [n][dim] -> y [dim].
 * `vecs`: dim in registers. `scores`: room for n numbers, rounded up to a register. */
INLINE void attend(const int vecs, const float *q, const float *keys, const float *values, int64_t n, float scale, float *scores, float *y)
{
    const int64_t dim = vecs * WIDE;
    float top = -INFINITY;
    vec asked[vecs], sum[vecs], all = {0};
    memcpy(asked, q, sizeof asked);
    for (int64_t p = 0; p < n; p++) {
        vec product = asked[0] * *(const vec *)(keys + p * dim);
#pragma GCC unroll 16
        for (int v = 1; v < vecs; v++)
            product += asked[v] * *(const vec *)(keys + p * dim + v * WIDE);
        scores[p] = total(product) * scale;
        top = scores[p] > top ? scores[p] : top;
    }
    for (int64_t p = n; p % WIDE; p++)
        scores[p] = -INFINITY;
    for (int64_t p = 0; p < n; p += WIDE) {
        const vec share = power(*(const vec *)(scores + p) - top);
        *(vec *)(scores + p) = share;
        all += share;
    }
    const float by = 1.0f / total(all);
    for (int v = 0; v < vecs; v++)
        sum[v] = (vec){0};
    for (int64_t p = 0; p < n; p++)
#pragma GCC unroll 16
        for (int v = 0; v < vecs; v++)
            sum[v] += scores[p] * *(const vec *)(values + p * dim + v * WIDE);
    for (int v = 0; v < vecs; v++)
        *(vec *)(y + v * WIDE) = sum[v] * by;
}

#define HEAD(VECS) \
    case VECS: \
        attend(VECS, q, keys, values, n, scale, scores, y); \
        return 1;

/* `attend` for the head sizes there are; 0 for others. */
static int attended(int64_t dim, const float *q, const float *keys, const float *values, int64_t n, float scale, float *scores, float *y)
{
    switch (dim / WIDE) {
        HEAD(1) HEAD(2) HEAD(4) HEAD(8) HEAD(16)
    }
    return 0;
}

/* Whether heads of this size can be computed. */
int64_t has_head(int64_t dim)
{
    float q[16 * WIDE] = {0}, scores[WIDE];
    return dim % WIDE == 0 && dim <= 16 * WIDE && attended(dim, q, q, q, 1, 1.0f, scores, q);
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Scratch memory of a call, cut into arrays. */
typedef struct {
    float *x; /* [rows][width] */
    float *wide; /* [rows][widest product] */
    float *turned; /* [largest input][rows] */
    float *attended; /* [rows][heads * dim] */
    float *scores;
    int64_t widest;
} Scratch;

/* Cuts `memory`, or only counts the numbers that it must have.
 * `columns`, `inputs`: the widest product beyond the layers' own, and the most inputs of one. */
static int64_t cut(const Stack *s, int64_t columns, int64_t inputs, int64_t positions, float *memory, Scratch *c)
{
    const int64_t qkv = padded((s->heads + 2 * s->kv_heads) * s->dim);
    const int64_t most = larger(larger(s->width, s->inner), larger(s->heads * s->dim, inputs));
    const int64_t widest = larger(larger(qkv, padded(2 * s->inner)), padded(columns));
    const int64_t sizes[] = {MOST * s->width, MOST * widest, MOST * most, MOST * s->heads * s->dim, padded(positions)};
    int64_t begin[5], used = 0;
    for (int i = 0; i < 5; i++) {
        begin[i] = used;
        used += padded(sizes[i]);
    }
    if (memory)
        *c = (Scratch){memory + begin[0], memory + begin[1], memory + begin[2], memory + begin[3], memory + begin[4], widest};
    return used;
}

/* One layer for one position of each row. keys[r], values[r]: the row's [kv_heads][length][dim], with
 * `at[r]` positions before this one. */
static void run_layer(const Stack *s, const Layer *w, int rows, float *const *keys, float *const *values, const int64_t *at, int64_t length, Scratch *c)
{
    const int64_t heads = s->heads, kv = s->kv_heads, dim = s->dim, width = s->width;
    const int64_t group = heads / kv;
    norm(rows, c->x, w->norm1, width, s->eps, c->turned);
    product(rows, c->turned, w->qkv, width, padded((heads + 2 * kv) * dim), c->wide, c->widest, 0);
    for (int r = 0; r < rows; r++) {
        float *q = c->wide + r * c->widest, *k = q + heads * dim, *v = k + kv * dim;
        rotate(q, heads + kv, dim, s->cos + at[r] * dim, s->sin + at[r] * dim);
        for (int64_t h = 0; h < kv; h++) {
            float *seen_k = keys[r] + h * length * dim, *seen_v = values[r] + h * length * dim;
            memcpy(seen_k + at[r] * dim, k + h * dim, sizeof(float) * (size_t)dim);
            memcpy(seen_v + at[r] * dim, v + h * dim, sizeof(float) * (size_t)dim);
            for (int64_t g = h * group; g < (h + 1) * group; g++)
                attended(dim, q + g * dim, seen_k, seen_v, at[r] + 1, s->scale, c->scores,
                         c->attended + (r * heads + g) * dim);
        }
    }
    turn(rows, c->attended, heads * dim, heads * dim, c->turned);
    product(rows, c->turned, w->out, heads * dim, width, c->x, width, 1);
    norm(rows, c->x, w->norm2, width, s->eps, c->turned);
    product(rows, c->turned, w->gate_up, width, padded(2 * s->inner), c->wide, c->widest, 0);
    gate(rows, c->wide, c->widest, s->inner, c->turned);
    product(rows, c->turned, w->down, s->inner, width, c->x, width, 1);
}

/* Draws ---------------------------------------------------------------------------------------- */

/* The finaliser of MurmurHash3, as in `sampling.py`. */
INLINE uint32_t scramble(uint32_t x)
{
    x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
    x = (x ^ (x >> 13)) * 0xC2B2AE35u;
    return x ^ (x >> 16);
}

/* A float as an integer of the same order. NaN is above +Inf or below -Inf. */
INLINE int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); }

#define LARGEST ordered(0x7F800000)
#define SMALLEST ordered((int32_t)0xFF800000)

/* The k-th largest of n keys. */
static int32_t kth(const int32_t *keys, int64_t n, int64_t k, int32_t least, int32_t most)
{
    int64_t low = least, high = most; /* the answer is in [low, high] */
    while (low < high) {
        const int32_t middle = (int32_t)(high - (high - low) / 2);
        int32_t count = 0;
        for (int64_t i = 0; i < n; i++)
            count += keys[i] >= middle;
        if (count >= k)
            low = middle;
        else
            high = (int64_t)middle - 1;
    }
    return (int32_t)low;
}

/* One code of `row` from logits [codes]; `keys`: room for as many. Clears *sound if the logits are
 * not finite. */
static int64_t choose(const State *s, int64_t row, int64_t codebook, const float *logits, int64_t codes, int32_t *keys, uint8_t *sound)
{
    const int part = codebook > 0;
    const float temperature = s->temperature[2 * row + part];
    int32_t most = INT32_MIN, least = INT32_MAX;
    memcpy(keys, logits, sizeof(float) * (size_t)codes);
    for (int64_t i = 0; i < codes; i++) {
        keys[i] = ordered(keys[i]);
        most = keys[i] > most ? keys[i] : most;
        least = keys[i] < least ? keys[i] : least;
    }
    if (most >= LARGEST || most <= SMALLEST || least < SMALLEST) {
        *sound = 0;
        return 0;
    }
    int64_t kept = temperature > 0 ? s->top_k[2 * row + part] : 1;
    kept = kept < 1 ? 1 : kept > codes ? codes : kept;
    const int32_t bound = kept == 1 ? most : kth(keys, codes, kept, least, most);
    int64_t ties = kept; /* how many of those at the bound are candidates */
    for (int64_t i = 0; i < codes; i++)
        ties -= keys[i] > bound;
    const float cool = 1.0f / (temperature > 1e-5f ? temperature : 1e-5f);
    const uint32_t stream = scramble((uint32_t)s->seed[row] + (uint32_t)s->frame[row] * 0x9E3779B1u);
    const uint32_t key = scramble(stream + (uint32_t)codebook * 0x85EBCA77u);
    int64_t best = 0;
    float best_score = -INFINITY;
    for (int64_t i = 0; i < codes; i++) {
        if (keys[i] < bound || (keys[i] == bound && ties-- <= 0))
            continue;
        if (kept == 1)
            return i;
        const uint32_t bits = scramble(key + (uint32_t)i * 0xC2B2AE3Du);
        const float uniform = ((float)(bits >> 9) + 0.5f) * (1.0f / 8388608.0f);
        const float score = logits[i] * cool - logf(-logf(uniform));
        if (score > best_score) {
            best_score = score;
            best = i;
        }
    }
    return best;
}

/* Codebook 0 of `count` rows from logits [count][codes], into their states. */
void draw_first(const State *s, int64_t count, const int64_t *rows, const float *logits, int64_t codes, int64_t codebooks, float *memory, uint8_t *sound)
{
    for (int64_t r = 0; r < count; r++) {
        sound[r] = 1;
        s->codes[rows[r] * codebooks] = choose(s, rows[r], 0, logits + r * codes, codes, (int32_t *)memory, sound + r);
    }
}

/* The depth decoder ---------------------------------------------------------------------------- */

int64_t depth_scratch(const Depth *d)
{
    const Stack *s = &d->stack;
    const int64_t cache = 2 * s->layers * MOST * s->kv_heads * d->codebooks * s->dim;
    return cut(s, d->codes, d->backbone_width, d->codebooks, 0, 0) + cache + padded(d->codes);
}

/* Codebooks 1 and up of `count` <= MOST rows, whose codebook 0 is in their states. With `told`,
 * codes [count][codebooks] are given instead of drawn, and the logits of all codebooks but the first
 * are written to it: [count][codebooks - 1][codes]. A row whose codes but the last are all the end
 * code has ended: its last code is the end code too. */
void draw_depth(const Depth *d, const State *state, int64_t count, const int64_t *rows, float *memory, uint8_t *sound, float *told)
{
    const Stack *s = &d->stack;
    const int64_t n = d->codebooks, per_row = s->kv_heads * n * s->dim;
    Scratch c;
    float *cache = memory + cut(s, d->codes, d->backbone_width, n, memory, &c);
    int32_t *sorted = (int32_t *)(cache + 2 * s->layers * MOST * per_row);
    float *keys[MOST], *values[MOST];
    int64_t at[MOST];
    const int few = (int)count;
    memset(sound, 1, (size_t)count);
    for (int64_t step = 0; step < n; step++) {
        if (step == 0) {
            turn_hidden(state, few, rows, d->backbone_width, c.turned);
            product(few, c.turned, d->projector, d->backbone_width, s->width, c.x, s->width, 0);
        } else {
            for (int r = 0; r < few; r++) {
                const int64_t code = state->codes[rows[r] * n + step - 1];
                memcpy(c.x + r * s->width, d->embeddings[step - 1] + code * s->width, sizeof(float) * (size_t)s->width);
            }
        }
        for (int64_t l = 0; l < s->layers; l++) {
            for (int r = 0; r < few; r++) {
                keys[r] = cache + (2 * l * MOST + r) * per_row;
                values[r] = keys[r] + MOST * per_row;
                at[r] = step;
            }
            run_layer(s, s->layer + l, few, keys, values, at, n, &c);
        }
        if (step == 0)
            continue;
        norm(few, c.x, s->norm, s->width, s->eps, c.turned);
        product(few, c.turned, d->heads[step - 1], s->width, padded(d->codes), c.wide, c.widest, 0);
        for (int r = 0; r < few; r++) {
            const float *logits = c.wide + r * c.widest;
            if (told)
                memcpy(told + (r * (n - 1) + step - 1) * d->codes, logits, sizeof(float) * (size_t)d->codes);
            else
                state->codes[rows[r] * n + step] = choose(state, rows[r], step, logits, d->codes, sorted, sound + r);
        }
    }
    for (int r = 0; r < few && !told; r++) {
        int64_t *codes = state->codes + rows[r] * n, ended = 0;
        while (ended < n - 1 && codes[ended] == d->end_code)
            ended++;
        if (ended == n - 1)
            codes[n - 1] = d->end_code;
    }
}

/* The backbone --------------------------------------------------------------------------------- */

int64_t backbone_scratch(const Backbone *b) { return cut(&b->stack, b->codes, 0, b->context + 1, 0, 0); }

/* The logits [count][codes] of codebook 0 from the hidden states of `count` <= MOST rows. */
void first_logits(const Backbone *b, const State *state, int64_t count, const int64_t *rows, float *memory, float *logits)
{
    const Stack *s = &b->stack;
    Scratch c;
    cut(s, b->codes, 0, b->context + 1, memory, &c);
    const int few = (int)count;
    turn_hidden(state, few, rows, s->width, c.turned);
    product(few, c.turned, b->head, s->width, padded(b->codes), c.wide, c.widest, 0);
    for (int r = 0; r < few; r++)
        memcpy(logits + r * b->codes, c.wide + r * c.widest, sizeof(float) * (size_t)b->codes);
}

/* Runs the backbone on the last codes of `count` <= MOST rows. */
void read_frame(const Backbone *b, const State *state, int64_t count, const int64_t *rows, float *memory)
{
    const Stack *s = &b->stack;
    const int64_t per_row = s->kv_heads * state->length * s->dim;
    Scratch c;
    cut(s, b->codes, 0, b->context + 1, memory, &c);
    float *keys[MOST], *values[MOST];
    int64_t at[MOST];
    const int few = (int)count;
    for (int r = 0; r < few; r++) {
        float *x = c.x + r * s->width;
        const int64_t position = state->position[rows[r]];
        at[r] = position < b->context ? position : b->context;
        memset(x, 0, sizeof(float) * (size_t)s->width);
        for (int64_t k = 0; k < b->codebooks; k++) {
            const float *row = b->embedding + (k * b->vocab + state->codes[rows[r] * b->codebooks + k]) * s->width;
            for (int64_t i = 0; i < s->width; i++)
                x[i] += row[i];
        }
    }
    for (int64_t l = 0; l < s->layers; l++) {
        for (int r = 0; r < few; r++) {
            keys[r] = state->keys + (2 * l * state->all_rows + rows[r]) * per_row;
            values[r] = keys[r] + state->all_rows * per_row;
        }
        run_layer(s, s->layer + l, few, keys, values, at, state->length, &c);
    }
    norm(few, c.x, s->norm, s->width, s->eps, c.turned);
    for (int r = 0; r < few; r++) {
        for (int64_t k = 0; k < s->width; k++)
            state->hidden[rows[r] * s->width + k] = c.turned[k * few + r];
        state->position[rows[r]]++;
        state->frame[rows[r]]++;
    }
}
