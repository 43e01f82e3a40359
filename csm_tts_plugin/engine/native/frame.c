/* One frame of CSM on a CPU in float32: the depth decoder's loop with its draws, and the backbone's
 * step. `steps.py` calls it, `build.py` compiles it with the machine's own compiler.
 *
 * A call computes up to MOST rows, from their first to their last operation, on one thread. Each
 * sum of a row has the same order whatever the number of rows, so that an utterance is the same
 * alone and beside others. Weights are read once per call; they are stored in panels of PANEL
 * columns, [columns / PANEL][inputs][PANEL], because a core reads them at full speed only as one
 * sequence.
 */
#include "layers.h"

typedef struct {
    Stack stack;
    int64_t codebooks, codes, end_code, backbone_width;
    const float *projector;
    const float *const *embeddings; /* [codebooks - 1] of [codes][width] */
    const float *const *heads;      /* [codebooks - 1], in panels */
} Depth;

typedef struct {
    Stack stack;
    int64_t codebooks, vocab, context, codes;
    const float *embedding; /* [codebooks * vocab][width] */
    const float *head;      /* in panels */
} Backbone;

/* The state of all rows; a call works on rows[0] to rows[count - 1]. */
typedef struct {
    float *keys; /* [layers][2][rows][kv_heads][length][dim], values beside keys */
    int64_t all_rows, length;
    float *hidden;             /* [rows][backbone width] */
    int64_t *position, *codes; /* [rows], [rows][codebooks] */
    const float *temperature;  /* [rows][2] */
    const int64_t *top_k;      /* [rows][2] */
    const int64_t *seed;       /* [rows] */
    int64_t *frame;            /* [rows] */
} State;

int64_t most_rows(void) { return MOST; }
int64_t panel(void) { return PANEL; }

/* The hidden states of some rows -> y [width][rows] */
static void turn_hidden(const State *s, int count, const int64_t *rows, int64_t width, float *y)
{
    for (int r = 0; r < count; r++)
        for (int64_t k = 0; k < width; k++)
            y[k * count + r] = s->hidden[rows[r] * width + k];
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
static int64_t choose(const State *s, int64_t row, int64_t codebook, const float *logits,
                      int64_t codes, int32_t *keys, uint8_t *sound)
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
    const uint32_t stream =
        scramble((uint32_t)s->seed[row] + (uint32_t)s->frame[row] * 0x9E3779B1u);
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

/* Codebook 0 of `count` rows from logits [count][codes], into their states. sound [count] is 1 for
 * finite logits; `draw_depth` clears it where later ones are not. */
void draw_first(const State *s, int64_t count, const int64_t *rows, const float *logits,
                int64_t codes, int64_t codebooks, float *memory, uint8_t *sound)
{
    for (int64_t r = 0; r < count; r++) {
        sound[r] = 1;
        s->codes[rows[r] * codebooks] =
            choose(s, rows[r], 0, logits + r * codes, codes, (int32_t *)memory, sound + r);
    }
}

/* The depth decoder ---------------------------------------------------------------------------- */

int64_t depth_scratch(const Depth *d)
{
    const Stack *s = &d->stack;
    const int64_t cache = 2 * s->layers * MOST * s->kv_heads * d->codebooks * s->dim;
    return cut(s, d->codes, d->backbone_width, d->codebooks, 0, 0) + cache + padded(d->codes);
}

/* Codebooks 1 and up of `count` <= MOST rows, whose codebook 0 is in their states. With `told`, the
 * rows' codes are given instead of drawn, and the logits of all codebooks but the first are written
 * to it: [count][codebooks - 1][codes]. A row whose codes but the last are all the end code has
 * ended: its last code is the end code too. */
void draw_depth(const Depth *d, const State *state, int64_t count, const int64_t *rows,
                float *memory, uint8_t *sound, float *told)
{
    const Stack *s = &d->stack;
    const int64_t n = d->codebooks, per_row = s->kv_heads * n * s->dim;
    Scratch c;
    float *cache = memory + cut(s, d->codes, d->backbone_width, n, memory, &c);
    int32_t *sorted = (int32_t *)(cache + 2 * s->layers * MOST * per_row);
    float *keys[MOST], *values[MOST];
    int64_t at[MOST];
    const int few = (int)count;
    for (int64_t step = 0; step < n; step++) {
        if (step == 0) {
            turn_hidden(state, few, rows, d->backbone_width, c.turned);
            product(few, c.turned, d->projector, d->backbone_width, s->width, c.x, s->width, 0);
        } else {
            for (int r = 0; r < few; r++) {
                const int64_t code = state->codes[rows[r] * n + step - 1];
                memcpy(c.x + r * s->width, d->embeddings[step - 1] + code * s->width,
                       sizeof(float) * (size_t)s->width);
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
                memcpy(told + (r * (n - 1) + step - 1) * d->codes, logits,
                       sizeof(float) * (size_t)d->codes);
            else
                state->codes[rows[r] * n + step] =
                    choose(state, rows[r], step, logits, d->codes, sorted, sound + r);
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

int64_t backbone_scratch(const Backbone *b)
{
    return cut(&b->stack, b->codes, 0, b->context + 1, 0, 0);
}

/* The logits [count][codes] of codebook 0 from the hidden states of `count` <= MOST rows. */
void first_logits(const Backbone *b, const State *state, int64_t count, const int64_t *rows,
                  float *memory, float *logits)
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
void read_frame(const Backbone *b, const State *state, int64_t count, const int64_t *rows,
                float *memory)
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
            const float *row =
                b->embedding + (k * b->vocab + state->codes[rows[r] * b->codebooks + k]) * s->width;
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
