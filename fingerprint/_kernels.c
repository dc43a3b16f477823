/* One loop over one block of a matrix: everything between the hash and the product with signs, which numpy takes eight
 * readings of the cache for. ``blocks`` does the same without it, and tests hold the two to each other.
 *
 * Sums are of float32 numbers within a row, in whatever order the processor likes; rows are added up in double.
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

static PyMethodDef methods[] = {
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
