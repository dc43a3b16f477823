/* One loop over one block of a matrix: everything between the hash and the product with signs, which numpy takes eight
 * readings of the cache for. ``blocks`` does the same without it, and tests hold the two to each other.
 *
 * Sums are of float32 numbers within a row, in whatever order the processor likes; rows are added up in double.
 *
 * Where the processor has AVX-512, ``sketch`` takes the product with signs as well, a few rows at a time, so that they
 * never leave the nearest cache; bf16 by pairs, where it multiplies those, without making them float32 at all.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static __inline
#endif

typedef struct {
    int64_t least;     /* of the words as signed numbers */
    int64_t most;
    uint64_t largest;  /* of the words as unsigned numbers */
    int64_t zeros;     /* words that are 0 but for their sign */
    double powers[4];  /* sums of the numbers, their squares, cubes and fourth powers */
} Facts;

/* Row i in float32, in place: cut to +-limit; sums of what was, and of what is then. */
INLINE void finish_row(float *row, Py_ssize_t i, Py_ssize_t size, float limit, float *row_sums, float *column_sums,
                       float *row_squares, float *column_squares, Facts *facts)
{
    float total = 0.0f, squares = 0.0f, cubes = 0.0f, fourths = 0.0f, within = 0.0f;
    if (column_squares)
        for (Py_ssize_t j = 0; j < size; j++)
            column_squares[j] += row[j] * row[j];
    for (Py_ssize_t j = 0; j < size; j++) {
        float value = row[j], square = value * value;
        total += value;
        squares += square;
        cubes += square * value;
        fourths += square * square;
        value = value < limit ? value : limit;
        value = value > -limit ? value : -limit;
        row[j] = value;
        within += value;
        column_sums[j] += value;
    }
    facts->powers[0] += total;
    facts->powers[1] += squares;
    facts->powers[2] += cubes;
    facts->powers[3] += fourths;
    row_squares[i] = squares;
    row_sums[i] = within;
}

FOR_EVERY_PROCESSOR
static void take_bfloat16(const char *words, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t size, float limit, float *out,
                          float *row_sums, float *column_sums, float *row_squares, float *column_squares, Facts *facts)
{
    int16_t least = INT16_MAX, most = INT16_MIN;
    uint16_t largest = 0;
    for (Py_ssize_t i = 0; i < rows; i++) {
        const uint16_t *from = (const uint16_t *)(words + i * stride);
        float *row = out + i * size;
        uint32_t *bits = (uint32_t *)row;
        uint32_t zeros = 0;
        for (Py_ssize_t j = 0; j < size; j++) {
            uint16_t word = from[j];
            int16_t with_sign = (int16_t)word;
            least = with_sign < least ? with_sign : least;
            most = with_sign > most ? with_sign : most;
            largest = word > largest ? word : largest;
            zeros += (word & 0x7FFFu) == 0;
            bits[j] = (uint32_t)word << 16;
        }
        facts->zeros += zeros;
        finish_row(row, i, size, limit, row_sums, column_sums, row_squares, column_squares, facts);
    }
    facts->least = least;
    facts->most = most;
    facts->largest = largest;
}

FOR_EVERY_PROCESSOR
static void take_float32(const char *words, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t size, float limit, float *out,
                         float *row_sums, float *column_sums, float *row_squares, float *column_squares, Facts *facts)
{
    int32_t least = INT32_MAX, most = INT32_MIN;
    uint32_t largest = 0;
    for (Py_ssize_t i = 0; i < rows; i++) {
        float *row = out + i * size;
        const uint32_t *bits = (const uint32_t *)row;
        uint32_t zeros = 0;
        memmove(row, words + i * stride, (size_t)size * sizeof(float));
        for (Py_ssize_t j = 0; j < size; j++) {
            uint32_t word = bits[j];
            int32_t with_sign = (int32_t)word;
            least = with_sign < least ? with_sign : least;
            most = with_sign > most ? with_sign : most;
            largest = word > largest ? word : largest;
            zeros += (word & 0x7FFFFFFFu) == 0;
        }
        facts->zeros += zeros;
        finish_row(row, i, size, limit, row_sums, column_sums, row_squares, column_squares, facts);
    }
    facts->least = least;
    facts->most = most;
    facts->largest = largest;
}

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define HAS_SKETCH
#include <immintrin.h>

#define WIDTH 32  /* signs of a column */
#define SPAN 1024 /* columns of a row that are held at a time */
#define TILE 6    /* rows that are */

#define WIDE __attribute__((target("arch=x86-64-v4")))
#define WIDE_BFLOAT16 __attribute__((target("arch=x86-64-v4,avx512bf16")))

/* Some of the columns of some rows, and the sums of the rows over all columns so far. */
typedef struct {
    float held[TILE * SPAN];
    double powers[TILE][4];
    double within[TILE];
    int cut;
} Tile;

/* What the words of a part of a row were. */
INLINE void see(Facts *facts, int64_t least, int64_t most, uint64_t largest, uint32_t zeros)
{
    facts->least = least < facts->least ? least : facts->least;
    facts->most = most > facts->most ? most : facts->most;
    facts->largest = largest > facts->largest ? largest : facts->largest;
    facts->zeros += zeros;
}

/* A part of a row in float32: what it was, and then cut to +-limit. */
INLINE void hold_row(Tile *tile, int r, Py_ssize_t size, float limit, float *column_squares)
{
    float *row = tile->held + r * SPAN;
    float total = 0.0f, squares = 0.0f, cubes = 0.0f, fourths = 0.0f, within = 0.0f;
    int beyond = 0;
    if (column_squares)
        for (Py_ssize_t j = 0; j < size; j++)
            column_squares[j] += row[j] * row[j];
    for (Py_ssize_t j = 0; j < size; j++) {
        float value = row[j], square = value * value;
        total += value;
        squares += square;
        cubes += square * value;
        fourths += square * square;
        beyond += (value > limit) + (value < -limit);
        value = value < limit ? value : limit;
        value = value > -limit ? value : -limit;
        row[j] = value;
        within += value;
    }
    tile->powers[r][0] += total;
    tile->powers[r][1] += squares;
    tile->powers[r][2] += cubes;
    tile->powers[r][3] += fourths;
    tile->within[r] += within;
    tile->cut |= beyond != 0;
}

/* Adds the products of ``rows`` rows that are held with the signs of ``size`` columns to ``out``. */
WIDE INLINE void multiply(const int rows, const float *held, Py_ssize_t size, const float *signs, float *out)
{
    __m512 sums[TILE][2];
    for (int r = 0; r < rows; r++)
        sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (Py_ssize_t j = 0; j < size; j++) {
        const __m512 first = _mm512_loadu_ps(signs + WIDTH * j), last = _mm512_loadu_ps(signs + WIDTH * j + WIDTH / 2);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const __m512 value = _mm512_set1_ps(held[r * SPAN + j]);
            sums[r][0] = _mm512_fmadd_ps(value, first, sums[r][0]);
            sums[r][1] = _mm512_fmadd_ps(value, last, sums[r][1]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) {
            float *to = out + r * WIDTH + half * (WIDTH / 2);
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sums[r][half]));
        }
}

/* The same of bf16 as it is stored; ``pairs`` has the signs of two columns beside each other. */
WIDE_BFLOAT16 INLINE void multiply_pairs(const int rows, const char *words, Py_ssize_t stride, Py_ssize_t size,
                                         const uint16_t *pairs, float *out)
{
    __m512 sums[TILE][2];
    for (int r = 0; r < rows; r++)
        sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (Py_ssize_t j = 0; j < size; j += 2) {
        const __m512bh first = (__m512bh)_mm512_loadu_si512(pairs + WIDTH * j);
        const __m512bh last = (__m512bh)_mm512_loadu_si512(pairs + WIDTH * j + WIDTH);
        const int alone = j + 1 == size; /* the last of an odd number of columns has no other beside it */
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const char *from = words + r * stride + 2 * j;
            int pair;
            if (alone)
                pair = *(const uint16_t *)from;
            else
                memcpy(&pair, from, sizeof(pair));
            const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], value, first);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], value, last);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) {
            float *to = out + r * WIDTH + half * (WIDTH / 2);
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sums[r][half]));
        }
}

static WIDE void multiply_tile(const float *held, Py_ssize_t size, const float *signs, float *out)
{
    multiply(TILE, held, size, signs, out);
}

static WIDE void multiply_row(const float *held, Py_ssize_t size, const float *signs, float *out)
{
    multiply(1, held, size, signs, out);
}

static WIDE_BFLOAT16 void multiply_tile_pairs(const char *words, Py_ssize_t stride, Py_ssize_t size,
                                              const uint16_t *pairs, float *out)
{
    multiply_pairs(TILE, words, stride, size, pairs, out);
}

static WIDE_BFLOAT16 void multiply_row_pairs(const char *words, Py_ssize_t stride, Py_ssize_t size,
                                             const uint16_t *pairs, float *out)
{
    multiply_pairs(1, words, stride, size, pairs, out);
}

typedef struct {
    const char *words;
    Py_ssize_t stride, rows, size, itemsize;
    float limit;
    const float *signs;
    const uint16_t *pairs; /* NULL: not to be used */
    float *out, *row_sums, *column_sums, *row_squares, *column_squares;
} Block;

static WIDE void sketch_tile(const Block *block, Py_ssize_t i, int rows, Tile *tile, Facts *facts)
{
    memset(tile->powers, 0, sizeof(tile->powers));
    memset(tile->within, 0, sizeof(tile->within));
    memset(block->out + i * WIDTH, 0, (size_t)rows * WIDTH * sizeof(float));
    for (Py_ssize_t j = 0; j < block->size; j += SPAN) {
        const Py_ssize_t size = block->size - j < SPAN ? block->size - j : SPAN;
        const char *words = block->words + i * block->stride + j * block->itemsize;
        float *squares = block->column_squares ? block->column_squares + j : NULL;
        tile->cut = 0;
        for (int r = 0; r < rows; r++) {
            uint32_t *bits = (uint32_t *)(tile->held + r * SPAN), zeros = 0;
            if (block->itemsize == 2) {
                const uint16_t *from = (const uint16_t *)(words + r * block->stride);
                int16_t least = INT16_MAX, most = INT16_MIN;
                uint16_t largest = 0;
                for (Py_ssize_t k = 0; k < size; k++) {
                    uint16_t word = from[k];
                    int16_t with_sign = (int16_t)word;
                    least = with_sign < least ? with_sign : least;
                    most = with_sign > most ? with_sign : most;
                    largest = word > largest ? word : largest;
                    zeros += (word & 0x7FFFu) == 0;
                    bits[k] = (uint32_t)word << 16;
                }
                see(facts, least, most, largest, zeros);
            } else {
                int32_t least = INT32_MAX, most = INT32_MIN;
                uint32_t largest = 0;
                memcpy(bits, words + r * block->stride, (size_t)size * sizeof(float));
                for (Py_ssize_t k = 0; k < size; k++) {
                    uint32_t word = bits[k];
                    int32_t with_sign = (int32_t)word;
                    least = with_sign < least ? with_sign : least;
                    most = with_sign > most ? with_sign : most;
                    largest = word > largest ? word : largest;
                    zeros += (word & 0x7FFFFFFFu) == 0;
                }
                see(facts, least, most, largest, zeros);
            }
            hold_row(tile, r, size, block->limit, squares);
        }
        for (int r = 0; r < rows; r++)
            for (Py_ssize_t k = 0; k < size; k++)
                block->column_sums[j + k] += tile->held[r * SPAN + k];
        const float *signs = block->signs + j * WIDTH;
        const uint16_t *pairs = block->pairs && !tile->cut ? block->pairs + j * WIDTH : NULL;
        float *out = block->out + i * WIDTH;
        if (rows == TILE && pairs)
            multiply_tile_pairs(words, block->stride, size, pairs, out);
        else if (rows == TILE)
            multiply_tile(tile->held, size, signs, out);
        else
            for (int r = 0; r < rows; r++)
                if (pairs)
                    multiply_row_pairs(words + r * block->stride, block->stride, size, pairs, out + r * WIDTH);
                else
                    multiply_row(tile->held + r * SPAN, size, signs, out + r * WIDTH);
    }
    for (int r = 0; r < rows; r++) {
        for (int k = 0; k < 4; k++)
            facts->powers[k] += tile->powers[r][k];
        block->row_squares[i + r] = (float)tile->powers[r][1];
        block->row_sums[i + r] = (float)tile->within[r];
    }
}

static void sketch_block(const Block *block, Facts *facts)
{
    Tile tile;
    for (Py_ssize_t i = 0; i < block->rows; i += TILE)
        sketch_tile(block, i, block->rows - i < TILE ? (int)(block->rows - i) : TILE, &tile, facts);
}

/* 0: there is none; 1: of float32; 2: of pairs of bf16 too. */
static int sketch_level(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("x86-64-v4") ? 1 + (__builtin_cpu_supports("avx512bf16") != 0) : 0;
}
#else
static int sketch_level(void) { return 0; }
#endif

enum { WORDS, OUT, ROW_SUMS, COLUMN_SUMS, ROW_SQUARES, COLUMN_SQUARES, BUFFERS };

/* Whether a buffer is float32 memory for ``size`` numbers that may be written. */
static int is_room(const Py_buffer *buffer, Py_ssize_t size)
{
    return buffer->itemsize == (Py_ssize_t)sizeof(float) && buffer->len == size * (Py_ssize_t)sizeof(float);
}

static PyObject *look(PyObject *module, PyObject *args)
{
    PyObject *given[BUFFERS];
    Py_buffer held[BUFFERS];
    double limit;
    int taken = 0;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "OdOOOOO:look", &given[WORDS], &limit, &given[OUT], &given[ROW_SUMS],
                          &given[COLUMN_SUMS], &given[ROW_SQUARES], &given[COLUMN_SQUARES]))
        return NULL;
    for (; taken < BUFFERS; taken++) {
        int flags = taken == WORDS ? PyBUF_STRIDES : PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE;
        if (PyObject_GetBuffer(given[taken], &held[taken], flags) < 0)
            goto done;
    }
    const Py_buffer *words = &held[WORDS];
    if (words->ndim != 2 || (words->itemsize != 2 && words->itemsize != 4) || words->strides[1] != words->itemsize) {
        PyErr_SetString(PyExc_ValueError, "words are two-dimensional, of 2 or 4 bytes, and lie together in each row");
        goto done;
    }
    const Py_ssize_t rows = words->shape[0], size = words->shape[1];
    const Py_ssize_t squares = held[COLUMN_SQUARES].len ? size : 0;
    if (!is_room(&held[OUT], rows * size) || !is_room(&held[ROW_SUMS], rows) || !is_room(&held[COLUMN_SUMS], size) ||
        !is_room(&held[ROW_SQUARES], rows) || !is_room(&held[COLUMN_SQUARES], squares)) {
        PyErr_SetString(PyExc_ValueError, "the room for results is not of the shape of the words");
        goto done;
    }
    Facts facts = {0};
    Py_BEGIN_ALLOW_THREADS
    (words->itemsize == 2 ? take_bfloat16 : take_float32)(
        words->buf, words->strides[0], rows, size, (float)limit, held[OUT].buf, held[ROW_SUMS].buf,
        held[COLUMN_SUMS].buf, held[ROW_SQUARES].buf, squares ? held[COLUMN_SQUARES].buf : NULL, &facts);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("LLKLdddd", (long long)facts.least, (long long)facts.most, (unsigned long long)facts.largest,
                           (long long)facts.zeros, facts.powers[0], facts.powers[1], facts.powers[2], facts.powers[3]);
done:
    while (taken > 0)
        PyBuffer_Release(&held[--taken]);
    return result;
}

#ifdef HAS_SKETCH
enum { S_WORDS, S_SIGNS, S_PAIRS, S_OUT, S_ROW_SUMS, S_COLUMN_SUMS, S_ROW_SQUARES, S_COLUMN_SQUARES, S_BUFFERS };

static PyObject *sketch(PyObject *module, PyObject *args)
{
    PyObject *given[S_BUFFERS];
    Py_buffer held[S_BUFFERS];
    double limit;
    int taken = 0;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "OdOOOOOOO:sketch", &given[S_WORDS], &limit, &given[S_SIGNS], &given[S_PAIRS],
                          &given[S_OUT], &given[S_ROW_SUMS], &given[S_COLUMN_SUMS], &given[S_ROW_SQUARES],
                          &given[S_COLUMN_SQUARES]))
        return NULL;
    for (; taken < S_BUFFERS; taken++) {
        int flags = taken == S_WORDS ? PyBUF_STRIDES : PyBUF_C_CONTIGUOUS | (taken >= S_OUT ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(given[taken], &held[taken], flags) < 0)
            goto done;
    }
    const Py_buffer *words = &held[S_WORDS];
    if (words->ndim != 2 || (words->itemsize != 2 && words->itemsize != 4) || words->strides[1] != words->itemsize) {
        PyErr_SetString(PyExc_ValueError, "words are two-dimensional, of 2 or 4 bytes, and lie together in each row");
        goto done;
    }
    const Py_ssize_t rows = words->shape[0], size = words->shape[1], pairs = held[S_PAIRS].len;
    const Py_ssize_t squares = held[S_COLUMN_SQUARES].len ? size : 0;
    if (!is_room(&held[S_SIGNS], size * WIDTH) || !is_room(&held[S_OUT], rows * WIDTH) ||
        (pairs && pairs != (size + 1) / 2 * 2 * WIDTH * (Py_ssize_t)sizeof(uint16_t)) ||
        !is_room(&held[S_ROW_SUMS], rows) || !is_room(&held[S_COLUMN_SUMS], size) ||
        !is_room(&held[S_ROW_SQUARES], rows) || !is_room(&held[S_COLUMN_SQUARES], squares) || sketch_level() < 1) {
        PyErr_SetString(PyExc_ValueError, "the room for results, or the signs, are not of the shape of the words");
        goto done;
    }
    Facts facts = {.least = INT64_MAX, .most = INT64_MIN};
    const Block block = {
        .words = words->buf, .stride = words->strides[0], .rows = rows, .size = size, .itemsize = words->itemsize,
        .limit = (float)limit, .signs = held[S_SIGNS].buf,
        .pairs = pairs && words->itemsize == 2 && sketch_level() > 1 ? held[S_PAIRS].buf : NULL,
        .out = held[S_OUT].buf, .row_sums = held[S_ROW_SUMS].buf, .column_sums = held[S_COLUMN_SUMS].buf,
        .row_squares = held[S_ROW_SQUARES].buf, .column_squares = squares ? held[S_COLUMN_SQUARES].buf : NULL,
    };
    Py_BEGIN_ALLOW_THREADS
    sketch_block(&block, &facts);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("LLKLdddd", (long long)facts.least, (long long)facts.most, (unsigned long long)facts.largest,
                           (long long)facts.zeros, facts.powers[0], facts.powers[1], facts.powers[2], facts.powers[3]);
done:
    while (taken > 0)
        PyBuffer_Release(&held[--taken]);
    return result;
}
#endif

static PyObject *level(PyObject *module, PyObject *args)
{
    (void)module;
    (void)args;
    return PyLong_FromLong(sketch_level());
}

static PyMethodDef methods[] = {
    {"sketch_level", level, METH_NOARGS,
     "sketch_level()\n\nWhether there is sketch here: 0 no, 1 of float32, 2 of pairs of bf16 as they are stored too."},
#ifdef HAS_SKETCH
    {"sketch", sketch, METH_VARARGS,
     "sketch(words, limit, signs, pairs, out, row_sums, column_sums, row_squares, column_squares)\n\n"
     "As look, but in place of the numbers their products with signs (c, 32) float32 are written to out (b, 32).\n"
     "pairs (c / 2 rounded up, 32, 2) uint16 are the same in bf16, the signs of two columns beside each other, or empty:\n"
     "bf16 that is not cut is then multiplied as it is stored. Column sums are added to, as in look."},
#endif
    {"look", look, METH_VARARGS,
     "look(words, limit, out, row_sums, column_sums, row_squares, column_squares)\n\n"
     "Take the bits of bf16 (uint16) or float32 (uint32) numbers, (b, c), into out (b, c) float32, cut to magnitudes\n"
     "up to limit. Writes the sums of the rows of what was cut (b,), adds those of its columns (c,); writes the sums of\n"
     "squares of the rows (b,) of what was there before, and adds those of its columns (c,) unless the array is empty.\n"
     "Returns the least and most of the words as signed numbers, the largest as an unsigned one, how many are 0 or -0,\n"
     "and the sums of their first four powers before. Nothing but the first three means anything if there are NaN or\n"
     "infinities. Raises ValueError if the shapes do not fit."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void)
{
    return PyModule_Create(&definition);
}
