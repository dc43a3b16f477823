/* Products of bf16 numbers, as they are stored, with the directions of a frame, where the processor multiplies pairs of
 * them (AVX-512 BF16); and the energies of rows of bf16 under weights. ``directions`` does the same without it.
 *
 * Directions are exact in bf16 and come in pairs: (length / 2 rounded up, width, 2), those of two places along a slice
 * beside each other. Sums are of float32.
 */
#include "_loops.h"

#define LANES 16   /* numbers of a register */
#define TILE 6     /* rows that are multiplied at a time, with up to MOST registers of directions */
#define MOST 4
#define ROWS 48    /* rows that share the directions of SPAN places while these are in the nearer cache */
#define SPAN 1024
#define STRIP 32   /* columns that are multiplied at a time, with FEW directions, CHUNK rows beside one another */
#define FEW 8
#define CHUNK 512

/* A matrix of bf16, (rows, size), rows ``stride`` bytes apart, and (length / 2, width, 2) directions, ``width`` a
 * multiple of LANES. */
typedef struct {
    const char *words;
    Py_ssize_t stride, rows, size;
    const uint16_t *pairs;
    Py_ssize_t width;
} Factors;

#ifdef BY_PROCESSOR
INLINE int pair_at(const char *from)
{
    int pair;
    memcpy(&pair, from, sizeof(pair));
    return pair;
}

/* The last of an odd number of places, with nothing beside it. */
INLINE int last_at(const char *from)
{
    uint16_t word;
    memcpy(&word, from, sizeof(word));
    return word;
}

/* Adds the products of ``rows`` rows with ``registers`` times LANES directions, over ``size`` places. */
WIDE_BFLOAT16 INLINE void multiply(const int rows, const int registers, const char *const *words, Py_ssize_t size,
                                   const uint16_t *pairs, Py_ssize_t width, float *const *out)
{
    __m512 sums[TILE][MOST];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < registers; v++)
            sums[r][v] = _mm512_loadu_ps(out[r] + v * LANES);
    for (Py_ssize_t j = 0; j + 1 < size; j += 2) {
        __m512bh directions[MOST];
#pragma GCC unroll 4
        for (int v = 0; v < registers; v++)
            directions[v] = (__m512bh)_mm512_loadu_si512(pairs + j * width + v * 2 * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const __m512bh value = (__m512bh)_mm512_set1_epi32(pair_at(words[r] + 2 * j));
#pragma GCC unroll 4
            for (int v = 0; v < registers; v++)
                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], value, directions[v]);
        }
    }
    if (size % 2)
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const __m512bh value = (__m512bh)_mm512_set1_epi32(last_at(words[r] + 2 * (size - 1)));
#pragma GCC unroll 4
            for (int v = 0; v < registers; v++) {
                const void *from = pairs + (size - 1) * width + v * 2 * LANES;
                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], value, (__m512bh)_mm512_loadu_si512(from));
            }
        }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < registers; v++)
            _mm512_storeu_ps(out[r] + v * LANES, sums[r][v]);
}

/* The same for up to TILE rows, and directions in groups of MOST registers and single ones. */
static WIDE_BFLOAT16 void multiply_tile(int rows, const char *const *words, Py_ssize_t size, const uint16_t *pairs,
                                        Py_ssize_t width, float *const *out)
{
    float *there[TILE];
    for (Py_ssize_t first = 0; first < width;) {
        const int many = width - first >= MOST * LANES;
        for (int r = 0; r < rows; r++)
            there[r] = out[r] + first;
        if (many && rows == TILE)
            multiply(TILE, MOST, words, size, pairs + 2 * first, width, there);
        else
            for (int r = 0; r < rows; r++)
                if (many)
                    multiply(1, MOST, words + r, size, pairs + 2 * first, width, there + r);
                else
                    multiply(1, 1, words + r, size, pairs + 2 * first, width, there + r);
        first += many ? MOST * LANES : LANES;
    }
}

INLINE const char *row_of(const Factors *given, const int64_t *places, Py_ssize_t row)
{
    return given->words + (places ? places[row] : row) * given->stride;
}

/* Rows ``places`` (all, in their order, if it is NULL) times the directions: ``out`` (count, width), added to. */
static void rows_at(const Factors *given, const int64_t *places, Py_ssize_t count, float *out)
{
    const char *words[TILE];
    float *there[TILE];
    for (Py_ssize_t first = 0; first < count; first += ROWS) {
        const Py_ssize_t last = count - first < ROWS ? count : first + ROWS;
        for (Py_ssize_t j = 0; j < given->size; j += SPAN) {
            const Py_ssize_t size = given->size - j < SPAN ? given->size - j : SPAN;
            for (Py_ssize_t i = first; i < last; i += TILE) {
                const int rows = last - i < TILE ? (int)(last - i) : TILE;
                for (int r = 0; r < rows; r++) {
                    words[r] = row_of(given, places, i + r) + 2 * j;
                    there[r] = out + (i + r) * given->width;
                }
                /* What is read next lies too far away for the processor to see it by itself. */
                for (Py_ssize_t row = i + TILE; row < i + 2 * TILE && row < count; row++)
                    for (Py_ssize_t byte = 0; byte < 2 * size; byte += LINE)
                        __builtin_prefetch(row_of(given, places, row) + 2 * j + byte, 0, 2);
                multiply_tile(rows, words, size, given->pairs + j * given->width, given->width, there);
            }
        }
    }
}

/* Words of the columns of a strip, those of two rows beside each other, ``filled`` pairs of rows. */
WIDE_BFLOAT16 INLINE Py_ssize_t pack(const Factors *given, Py_ssize_t row, Py_ssize_t column, int32_t (*strip)[STRIP])
{
    const Py_ssize_t rows = given->rows - row < CHUNK ? given->rows - row : CHUNK;
    const Py_ssize_t columns = given->size - column < STRIP ? given->size - column : STRIP;
    const __mmask32 there = columns < STRIP ? (1u << columns) - 1u : 0xFFFFFFFFu;
    /* Of two registers of 32 words: those of one place beside each other, places 0 to 15 and 16 to 31. */
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                           5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i other = _mm512_add_epi16(order, _mm512_set1_epi16(16));
    for (Py_ssize_t r = 0; r < rows; r += 2) {
        const char *from = given->words + (row + r) * given->stride + 2 * column;
        const __m512i first = _mm512_maskz_loadu_epi16(there, from);
        const __m512i last = r + 1 < rows ? _mm512_maskz_loadu_epi16(there, from + given->stride) : _mm512_setzero_si512();
        __builtin_prefetch(from + 2 * STRIP), __builtin_prefetch(from + given->stride + 2 * STRIP);
        _mm512_store_si512(strip[r / 2], _mm512_permutex2var_epi16(first, order, last));
        _mm512_store_si512(strip[r / 2] + LANES, _mm512_permutex2var_epi16(first, other, last));
    }
    return (rows + 1) / 2;
}

/* Adds the products of ``filled`` pairs of rows of a strip with directions to ``sums`` (width, STRIP). */
WIDE_BFLOAT16 INLINE void add_strip(int32_t (*strip)[STRIP], Py_ssize_t filled, const uint16_t *pairs,
                                    Py_ssize_t width, float *sums)
{
    for (Py_ssize_t n = 0; n < width; n += FEW) {
        const char *directions = (const char *)(pairs + 2 * n);
        float *there = sums + n * STRIP;
        __m512 added[FEW][2];
#pragma GCC unroll 8
        for (int k = 0; k < FEW; k++) {
            added[k][0] = _mm512_loadu_ps(there + k * STRIP);
            added[k][1] = _mm512_loadu_ps(there + k * STRIP + LANES);
        }
        for (Py_ssize_t r = 0; r < filled; r++, directions += width * 4) {
            const __m512bh low = (__m512bh)_mm512_load_si512(strip[r]);
            const __m512bh high = (__m512bh)_mm512_load_si512(strip[r] + LANES);
#pragma GCC unroll 8
            for (int k = 0; k < FEW; k++) {
                const __m512bh value = (__m512bh)_mm512_set1_epi32(pair_at(directions + 4 * k));
                added[k][0] = _mm512_dpbf16_ps(added[k][0], low, value);
                added[k][1] = _mm512_dpbf16_ps(added[k][1], high, value);
            }
        }
#pragma GCC unroll 8
        for (int k = 0; k < FEW; k++) {
            _mm512_storeu_ps(there + k * STRIP, added[k][0]);
            _mm512_storeu_ps(there + k * STRIP + LANES, added[k][1]);
        }
    }
}

/* Columns times the directions, added to ``sums`` (size / STRIP rounded up, width, STRIP). */
static WIDE_BFLOAT16 void columns_at(const Factors *given, float *sums)
{
    _Alignas(64) int32_t strip[CHUNK / 2][STRIP];
    for (Py_ssize_t row = 0; row < given->rows; row += CHUNK)
        for (Py_ssize_t column = 0; column < given->size; column += STRIP) {
            const Py_ssize_t filled = pack(given, row, column, strip);
            add_strip(strip, filled, given->pairs + row * given->width, given->width, sums + column * given->width);
        }
}
#else
static void rows_at(const Factors *given, const int64_t *places, Py_ssize_t count, float *out)
{
    (void)given, (void)places, (void)count, (void)out;
}
static void columns_at(const Factors *given, float *sums) { (void)given, (void)sums; }
#endif

/* Squares of rows of bf16 under weights, and their sum: ``energies`` (rows,) is written, ``totals`` (size,) added to. */
FOR_EVERY_PROCESSOR
static void energies_at(const Factors *given, const float *weights, float *energies, float *totals)
{
    for (Py_ssize_t i = 0; i < given->rows; i++) {
        const uint16_t *words = (const uint16_t *)(given->words + i * given->stride);
        float energy = 0.0f;
        for (Py_ssize_t j = 0; j < given->size; j++) {
            const uint32_t bits = (uint32_t)words[j] << 16;
            float value;
            memcpy(&value, &bits, sizeof(value));
            totals[j] += value;
            energy += value * value * weights[j];
        }
        energies[i] = energy;
    }
}

/* Two-dimensional words of two bytes, each row of which lies together. */
static int are_words(const Py_buffer *words)
{
    return words->ndim == 2 && words->itemsize == 2 && words->strides[1] == 2;
}

enum { WORDS, FIRST, SECOND, THIRD, BUFFERS };

static Factors factors_of(const Py_buffer *words, const Py_buffer *pairs, Py_ssize_t length)
{
    const Py_ssize_t row = (length + 1) / 2 * 2 * (Py_ssize_t)sizeof(uint16_t);
    const int fits = row && pairs->itemsize == 2 && pairs->len % (row * LANES) == 0;
    return (Factors){words->buf, words->strides[0], words->shape[0], words->shape[1], pairs->buf,
                     fits ? pairs->len / row : 0};
}

static PyObject *of_rows(PyObject *module, PyObject *args)
{
    PyObject *given[BUFFERS];
    Py_buffer held[BUFFERS];
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOO:of_rows", &given[WORDS], &given[FIRST], &given[SECOND], &given[THIRD]))
        return NULL;
    const int had = hold(given, BUFFERS, THIRD, 1, held);
    if (had < BUFFERS || level_of_processor() < 2 || !are_words(&held[WORDS]))
        return let_go(held, had, "rows of two bytes, where products of bf16 are built");
    const Factors factors = factors_of(&held[WORDS], &held[FIRST], held[WORDS].shape[1]);
    const Py_ssize_t chosen = held[SECOND].len / (Py_ssize_t)sizeof(int64_t), width = factors.width;
    const Py_ssize_t count = chosen ? chosen : factors.rows;
    if (!width || held[SECOND].itemsize != (Py_ssize_t)sizeof(int64_t) || !is_room(&held[THIRD], count * width) ||
        !are_below(held[SECOND].buf, chosen, factors.rows))
        return let_go(held, had, "directions, places or room that do not fit the words");
    Py_BEGIN_ALLOW_THREADS
    rows_at(&factors, chosen ? held[SECOND].buf : NULL, count, held[THIRD].buf);
    Py_END_ALLOW_THREADS
    return let_go(held, had, NULL);
}

static PyObject *of_columns(PyObject *module, PyObject *args)
{
    PyObject *given[BUFFERS];
    Py_buffer held[BUFFERS];
    (void)module;
    if (!PyArg_ParseTuple(args, "OOO:of_columns", &given[WORDS], &given[FIRST], &given[SECOND]))
        return NULL;
    const int had = hold(given, THIRD, SECOND, 1, held);
    if (had < THIRD || level_of_processor() < 2 || !are_words(&held[WORDS]))
        return let_go(held, had, "rows of two bytes, where products of bf16 are built");
    const Factors factors = factors_of(&held[WORDS], &held[FIRST], held[WORDS].shape[0]);
    if (!factors.width || !is_room(&held[SECOND], (factors.size + STRIP - 1) / STRIP * STRIP * factors.width))
        return let_go(held, had, "directions or room that do not fit the words");
    Py_BEGIN_ALLOW_THREADS
    columns_at(&factors, held[SECOND].buf);
    Py_END_ALLOW_THREADS
    return let_go(held, had, NULL);
}

static PyObject *energies(PyObject *module, PyObject *args)
{
    PyObject *given[BUFFERS];
    Py_buffer held[BUFFERS];
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOO:energies", &given[WORDS], &given[FIRST], &given[SECOND], &given[THIRD]))
        return NULL;
    const int had = hold(given, BUFFERS, SECOND, 1, held);
    if (had < BUFFERS || !are_words(&held[WORDS]))
        return let_go(held, had, "rows of two bytes");
    const Factors factors = {held[WORDS].buf, held[WORDS].strides[0], held[WORDS].shape[0], held[WORDS].shape[1], NULL, 0};
    if (!is_room(&held[FIRST], factors.size) || !is_room(&held[SECOND], factors.rows) ||
        !is_room(&held[THIRD], factors.size))
        return let_go(held, had, "weights or room that do not fit the words");
    Py_BEGIN_ALLOW_THREADS
    energies_at(&factors, held[FIRST].buf, held[SECOND].buf, held[THIRD].buf);
    Py_END_ALLOW_THREADS
    return let_go(held, had, NULL);
}

static PyObject *built(PyObject *module, PyObject *args)
{
    (void)module, (void)args;
    return PyBool_FromLong(level_of_processor() > 1);
}

static PyMethodDef methods[] = {
    {"is_built", built, METH_NOARGS, "is_built()\n\nWhether of_rows and of_columns can be called on this processor."},
    {"of_rows", of_rows, METH_VARARGS,
     "of_rows(words, pairs, places, out)\n\n"
     "Add the products of rows of words (b, c) uint16, bf16 numbers, with directions to out (k, w) float32: of the rows\n"
     "at places (k,) int64, or of all if it is empty. pairs (c / 2 rounded up, w, 2) uint16 are directions in bf16, w a\n"
     "multiple of 16. Raises ValueError if shapes do not fit, and where is_built is False."},
    {"of_columns", of_columns, METH_VARARGS,
     "of_columns(words, pairs, out)\n\n"
     "The same of all columns: pairs (b / 2 rounded up, w, 2), out (c / 32 rounded up, w, 32)."},
    {"energies", energies, METH_VARARGS,
     "energies(words, weights, out, totals)\n\n"
     "Write the sums of squares of rows of words (b, c) uint16, bf16 numbers, times weights (c,) float32 to out (b,), and\n"
     "add the columns to totals (c,) float32. Raises ValueError if shapes do not fit."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_directions", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__directions(void)
{
    return PyModule_Create(&definition);
}
