/* One loop over one block of a matrix: everything between the hash and the product with signs, which numpy takes eight
 * readings of the cache for. ``blocks`` does the same without it, and tests hold the two to each other.
 *
 * Sums are of float32 numbers within a row, in whatever order the processor likes; rows are added up in double.
 *
 * ``sketch`` takes the product with signs as well, a few rows at a time, so that they never leave the nearest cache. That
 * is worth it where the processor has AVX-512; bf16 goes by pairs where it multiplies those, without being made float32.
 */
#include "_loops.h"

#define WIDTH 32  /* signs of a column */
#define SPAN 1024 /* columns of a row that ``sketch`` holds at a time */
#define TILE 6    /* rows that it does */
#define FAR 16    /* times the limit: numbers beyond are cut before they are added, not afterwards */

typedef struct {
    int64_t least;     /* of the words as signed numbers */
    int64_t most;
    uint64_t largest;  /* of the words as unsigned numbers */
    int64_t zeros;     /* words that are 0 but for their sign */
    double powers[4];  /* sums of the numbers, their squares, cubes and fourth powers */
} Facts;

/* What a call is given; ``signs`` is NULL if it is to look alone, ``pairs`` if it has none or may not use them. */
typedef struct {
    const char *words;
    Py_ssize_t stride, rows, size, itemsize;
    float limit;
    const float *signs;
    const uint16_t *pairs;
    float *out, *row_sums, *column_sums, *row_squares, *column_squares;
    const int64_t *places; /* of the columns that are taken out as they are stored, ``taken`` of them to ``columns`` */
    Py_ssize_t taken;
    char *columns;
} Block;

/* Of a part of a row: sums of the first four powers of what was, and of what is then. */
typedef struct {
    float powers[4], within;
} Sums;

INLINE void note(Facts *facts, int64_t least, int64_t most, uint64_t largest, uint64_t zeros)
{
    facts->least = least < facts->least ? least : facts->least;
    facts->most = most > facts->most ? most : facts->most;
    facts->largest = largest > facts->largest ? largest : facts->largest;
    facts->zeros += (int64_t)zeros;
}

/* Numbers in float32, and what their words were. */
INLINE void widen(const char *words, Py_ssize_t itemsize, Py_ssize_t size, float *row, Facts *facts)
{
    uint32_t *bits = (uint32_t *)row, zeros = 0;
    int64_t low, high;
    uint64_t top;
    if (itemsize == 2) {
        const uint16_t *from = (const uint16_t *)words;
        int16_t least = INT16_MAX, most = INT16_MIN;
        uint16_t largest = 0;
        for (Py_ssize_t j = 0; j < size; j++) {
            uint16_t word = from[j];
            int16_t with_sign = (int16_t)word;
            least = with_sign < least ? with_sign : least;
            most = with_sign > most ? with_sign : most;
            largest = word > largest ? word : largest;
            zeros += (word & 0x7FFFu) == 0;
            bits[j] = (uint32_t)word << 16;
        }
        low = least, high = most, top = largest;
    } else {
        int32_t least = INT32_MAX, most = INT32_MIN;
        uint32_t largest = 0;
        memmove(row, words, (size_t)size * sizeof(float));
        for (Py_ssize_t j = 0; j < size; j++) {
            uint32_t word = bits[j];
            int32_t with_sign = (int32_t)word;
            least = with_sign < least ? with_sign : least;
            most = with_sign > most ? with_sign : most;
            largest = word > largest ? word : largest;
            zeros += (word & 0x7FFFFFFFu) == 0;
        }
        low = least, high = most, top = largest;
    }
    note(facts, low, high, top, zeros);
}

/* A part of a row, in place: cut to +-limit. */
INLINE Sums cut_row(float *row, Py_ssize_t size, float limit, float *column_sums, float *column_squares)
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
    return (Sums){{total, squares, cubes, fourths}, within};
}

FOR_EVERY_PROCESSOR
static void look_at(const Block *block, Facts *facts)
{
    for (Py_ssize_t i = 0; i < block->rows; i++) {
        float *row = block->out + i * block->size;
        widen(block->words + i * block->stride, block->itemsize, block->size, row, facts);
        const Sums sums = cut_row(row, block->size, block->limit, block->column_sums, block->column_squares);
        for (int k = 0; k < 4; k++)
            facts->powers[k] += sums.powers[k];
        block->row_squares[i] = sums.powers[1];
        block->row_sums[i] = sums.within;
    }
}

#ifdef BY_PROCESSOR
INLINE uint32_t bits_of(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof(bits));
    return bits;
}

INLINE float number_of(uint32_t bits)
{
    float number;
    memcpy(&number, &bits, sizeof(number));
    return number;
}

WIDE INLINE void add_sums(const int rows, __m512 sums[TILE][2], float *out)
{
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) {
            float *to = out + r * WIDTH + half * (WIDTH / 2);
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sums[r][half]));
        }
}

/* Adds the products of rows that are held with the signs of ``size`` columns to ``out``. */
WIDE INLINE void multiply_wide(const int rows, const float *held, Py_ssize_t size, const float *signs, float *out)
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
    add_sums(rows, sums, out);
}

/* The same of bf16 as it is stored; ``pairs`` has the signs of two columns beside each other. */
WIDE_BFLOAT16 INLINE void multiply_pairs(const char *words, Py_ssize_t stride, Py_ssize_t size,
                                         const uint16_t *pairs, float *out)
{
    __m512 sums[TILE][2];
    for (int r = 0; r < TILE; r++)
        sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (Py_ssize_t j = 0; j < size; j += 2) {
        const __m512bh first = (__m512bh)_mm512_loadu_si512(pairs + WIDTH * j);
        const __m512bh last = (__m512bh)_mm512_loadu_si512(pairs + WIDTH * j + WIDTH);
        const int alone = j + 1 == size; /* the last of an odd number of columns has no other beside it */
#pragma GCC unroll 6
        for (int r = 0; r < TILE; r++) {
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
    add_sums(TILE, sums, out);
}

/* A whole tile, or row by row what is less: the number of rows is known when the loops are made. */
static WIDE void multiply_tile(int rows, const float *held, Py_ssize_t size, const float *signs, float *out)
{
    if (rows == TILE)
        multiply_wide(TILE, held, size, signs, out);
    else
        for (int r = 0; r < rows; r++)
            multiply_wide(1, held + r * SPAN, size, signs, out + r * WIDTH);
}

/* Sums of the even and of the odd ones of 32 columns, in their order. */
WIDE INLINE void store_columns(const __mmask32 mask, const __m512 sums[2], float *out)
{
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
    _mm512_mask_storeu_ps(out, (__mmask16)mask, _mm512_permutex2var_ps(sums[0], low, sums[1]));
    _mm512_mask_storeu_ps(out + 16, (__mmask16)(mask >> 16), _mm512_permutex2var_ps(sums[0], high, sums[1]));
}

/* Of some rows of some columns of bf16, as they are stored. */
typedef struct {
    __m512 totals[TILE], squares[TILE], cubes, fourths;
    __m512i least, most, largest;
    uint64_t zeros;
} Seen;

/* Adds up to 32 columns, those of ``mask``, of each row; their sums are written. Even and odd columns are taken apart,
 * since each half of a word of 32 bits is one number. */
WIDE INLINE void see_columns(const char *words, Py_ssize_t stride, const __mmask32 mask, float *sums,
                             float *column_squares, Seen *seen)
{
    const __m512i magnitude = _mm512_set1_epi16(0x7FFF), odd = _mm512_set1_epi32((int)0xFFFF0000u);
    __m512 added[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, squared[2] = {added[0], added[0]};
#pragma GCC unroll 6
    for (int r = 0; r < TILE; r++) {
        const __m512i word = _mm512_maskz_loadu_epi16(mask, words + r * stride);
        /* Where there is no column, the first of the row is looked at again. */
        const __m512i there = _mm512_mask_broadcastw_epi16(word, ~mask, _mm512_castsi512_si128(word));
        seen->least = _mm512_min_epi16(seen->least, there);
        seen->most = _mm512_max_epi16(seen->most, there);
        seen->largest = _mm512_max_epu16(seen->largest, there);
        seen->zeros += (uint64_t)__builtin_popcount(_mm512_mask_testn_epi16_mask(mask, word, magnitude));
        const __m512 values[2] = {_mm512_castsi512_ps(_mm512_slli_epi32(word, 16)),
                                  _mm512_castsi512_ps(_mm512_and_si512(word, odd))};
        for (int half = 0; half < 2; half++) {
            const __m512 square = _mm512_mul_ps(values[half], values[half]);
            seen->totals[r] = _mm512_add_ps(seen->totals[r], values[half]);
            seen->squares[r] = _mm512_add_ps(seen->squares[r], square);
            seen->cubes = _mm512_fmadd_ps(square, values[half], seen->cubes);
            seen->fourths = _mm512_fmadd_ps(square, square, seen->fourths);
            added[half] = _mm512_add_ps(added[half], values[half]);
            if (column_squares)
                squared[half] = _mm512_add_ps(squared[half], square);
        }
    }
    store_columns(mask, added, sums);
    if (column_squares)
        store_columns(mask, squared, column_squares);
}


WIDE INLINE Seen see_tile(const char *words, Py_ssize_t stride, Py_ssize_t size, float *sums,
                          float *column_squares)
{
    Seen seen;
    for (int r = 0; r < TILE; r++)
        seen.totals[r] = seen.squares[r] = _mm512_setzero_ps();
    seen.cubes = seen.fourths = _mm512_setzero_ps();
    seen.least = _mm512_set1_epi16(INT16_MAX), seen.most = _mm512_set1_epi16(INT16_MIN);
    seen.largest = _mm512_setzero_si512();
    seen.zeros = 0;
    Py_ssize_t j = 0;
    for (; j + 32 <= size; j += 32)
        see_columns(words + 2 * j, stride, 0xFFFFFFFFu, sums + j, column_squares ? column_squares + j : NULL, &seen);
    if (j < size)
        see_columns(words + 2 * j, stride, (1u << (size - j)) - 1u, sums + j,
                    column_squares ? column_squares + j : NULL, &seen);
    return seen;
}

/* Takes what was beyond the limit back, from sums and products of a tile that was not cut. */
WIDE INLINE void take_back(const Block *block, Py_ssize_t i, Py_ssize_t j, Py_ssize_t size, double *within)
{
    const __m512i magnitude = _mm512_set1_epi16(0x7FFF), most = _mm512_set1_epi16((short)(bits_of(block->limit) >> 16));
    for (int r = 0; r < TILE; r++) {
        const uint16_t *words = (const uint16_t *)(block->words + (i + r) * block->stride) + j;
        float *out = block->out + (i + r) * WIDTH;
        for (Py_ssize_t k = 0; k < size; k += 32) {
            const __mmask32 there = size - k < 32 ? (1u << (size - k)) - 1u : 0xFFFFFFFFu;
            const __m512i word = _mm512_and_si512(_mm512_maskz_loadu_epi16(there, words + k), magnitude);
            for (uint32_t beyond = _mm512_cmpgt_epu16_mask(word, most); beyond; beyond &= beyond - 1) {
                const Py_ssize_t column = j + k + __builtin_ctz(beyond);
                const float value = number_of((uint32_t)words[column - j] << 16);
                const float excess = value - (value > 0 ? block->limit : -block->limit);
                const float *signs = block->signs + column * WIDTH;
                for (int half = 0; half < WIDTH; half += WIDTH / 2) {
                    const __m512 back = _mm512_mul_ps(_mm512_set1_ps(excess), _mm512_loadu_ps(signs + half));
                    _mm512_storeu_ps(out + half, _mm512_sub_ps(_mm512_loadu_ps(out + half), back));
                }
                within[r] -= excess;
                block->column_sums[column] -= excess;
            }
        }
    }
}

/* A tile of bf16 as it is stored, without making it float32: 0, and nothing done, if it has numbers so far beyond the
 * limit that what is taken back afterwards would leave their rounding alone. */
static WIDE_BFLOAT16 int sketch_stored(const Block *block, Py_ssize_t i, Py_ssize_t j, Py_ssize_t size,
                                       double powers[TILE][4], double *within, Facts *facts)
{
    const char *words = block->words + i * block->stride + 2 * j;
    float sums[SPAN], squares[SPAN];
    const Seen seen = block->column_squares ? see_tile(words, block->stride, size, sums, squares)
                                            : see_tile(words, block->stride, size, sums, NULL);
    int16_t least = INT16_MAX, most = INT16_MIN, lows[32], highs[32];
    uint16_t largest = 0, tops[32];
    _mm512_storeu_si512(lows, seen.least), _mm512_storeu_si512(highs, seen.most), _mm512_storeu_si512(tops, seen.largest);
    for (int lane = 0; lane < 32; lane++) {
        least = lows[lane] < least ? lows[lane] : least;
        most = highs[lane] > most ? highs[lane] : most;
        largest = tops[lane] > largest ? tops[lane] : largest;
    }
    const int negative = largest & 0x8000 ? largest & 0x7FFF : 0, magnitude = most > negative ? most : negative;
    if (number_of((uint32_t)magnitude << 16) > FAR * block->limit)
        return 0;
    note(facts, least, most, largest, seen.zeros);
    for (int r = 0; r < TILE; r++) {
        const double total = _mm512_reduce_add_ps(seen.totals[r]);
        powers[r][0] += total, powers[r][1] += _mm512_reduce_add_ps(seen.squares[r]);
        within[r] += total;
    }
    powers[0][2] += _mm512_reduce_add_ps(seen.cubes), powers[0][3] += _mm512_reduce_add_ps(seen.fourths);
    for (Py_ssize_t k = 0; k < size; k++)
        block->column_sums[j + k] += sums[k];
    if (block->column_squares)
        for (Py_ssize_t k = 0; k < size; k++)
            block->column_squares[j + k] += squares[k];
    multiply_pairs(words, block->stride, size, block->pairs + j * WIDTH, block->out + i * WIDTH);
    if ((uint32_t)magnitude > bits_of(block->limit) >> 16)
        take_back(block, i, j, size, within);
    return 1;
}

#endif

/* The products on any processor. */
static void multiply_plainly(int rows, const float *held, Py_ssize_t size, const float *signs, float *out)
{
    for (int r = 0; r < rows; r++) {
        float sums[WIDTH] = {0.0f};
        for (Py_ssize_t j = 0; j < size; j++)
            for (int k = 0; k < WIDTH; k++)
                sums[k] += held[r * SPAN + j] * signs[WIDTH * j + k];
        for (int k = 0; k < WIDTH; k++)
            out[r * WIDTH + k] += sums[k];
    }
}

/* Products of some rows from j on, as they are held. */
static void multiply(const Block *block, Py_ssize_t i, int rows, Py_ssize_t j, Py_ssize_t size, const float *held)
{
    float *out = block->out + i * WIDTH;
    const float *signs = block->signs + j * WIDTH;
#ifdef BY_PROCESSOR
    if (level_of_processor() > 0) {
        multiply_tile(rows, held, size, signs, out);
        return;
    }
#endif
    multiply_plainly(rows, held, size, signs, out);
}

/* Rows lie so far apart that the processor does not see by itself what is read next. */
INLINE void ask_ahead(const Block *block, Py_ssize_t i, Py_ssize_t j, Py_ssize_t size)
{
#ifdef __GNUC__
    for (Py_ssize_t row = i; row < i + TILE && row < block->rows; row++)
        for (Py_ssize_t byte = 0; byte < size * block->itemsize; byte += LINE)
            __builtin_prefetch(block->words + row * block->stride + j * block->itemsize + byte, 0, 2);
#endif
}

/* Some columns of some rows, while these are in the cache. */
INLINE void take_columns(const Block *block, Py_ssize_t i, int rows)
{
    for (Py_ssize_t k = 0; k < block->taken; k++) {
        const char *from = block->words + i * block->stride + block->places[k] * block->itemsize;
        char *to = block->columns + (k * block->rows + i) * block->itemsize;
        for (int r = 0; r < rows; r++, from += block->stride, to += block->itemsize)
            memcpy(to, from, block->itemsize == 2 ? 2 : 4);
    }
}

FOR_EVERY_PROCESSOR
static void sketch_rows(const Block *block, Py_ssize_t i, int rows, float *held, Facts *facts)
{
    double powers[TILE][4] = {{0.0}}, within[TILE] = {0.0};
#ifdef BY_PROCESSOR
    const int stored = rows == TILE && block->pairs && level_of_processor() > 1;
#endif
    memset(block->out + i * WIDTH, 0, (size_t)rows * WIDTH * sizeof(float));
    for (Py_ssize_t j = 0; j < block->size; j += SPAN) {
        const Py_ssize_t size = block->size - j < SPAN ? block->size - j : SPAN;
        float *squares = block->column_squares ? block->column_squares + j : NULL;
        ask_ahead(block, i + TILE, j, size);
#ifdef BY_PROCESSOR
        if (stored && sketch_stored(block, i, j, size, powers, within, facts))
            continue;
#endif
        for (int r = 0; r < rows; r++) {
            float *row = held + r * SPAN;
            widen(block->words + (i + r) * block->stride + j * block->itemsize, block->itemsize, size, row, facts);
            const Sums sums = cut_row(row, size, block->limit, block->column_sums + j, squares);
            for (int k = 0; k < 4; k++)
                powers[r][k] += sums.powers[k];
            within[r] += sums.within;
        }
        multiply(block, i, rows, j, size, held);
    }
    take_columns(block, i, rows);
    for (int r = 0; r < rows; r++) {
        for (int k = 0; k < 4; k++)
            facts->powers[k] += powers[r][k];
        block->row_squares[i + r] = (float)powers[r][1];
        block->row_sums[i + r] = (float)within[r];
    }
}

static void sketch_at(const Block *block, Facts *facts)
{
    float held[TILE * SPAN];
    for (Py_ssize_t i = 0; i < block->rows; i += TILE)
        sketch_rows(block, i, block->rows - i < TILE ? (int)(block->rows - i) : TILE, held, facts);
}

enum { WORDS, OUT, ROW_SUMS, COLUMN_SUMS, ROW_SQUARES, COLUMN_SQUARES, COLUMNS, SIGNS, PAIRS, PLACES, BUFFERS };
#define LOOKED COLUMNS /* objects that ``look`` is given */

/* Take a block with the objects given, the last four of them only if there is a product: with ``number`` of them. */
static PyObject *take(PyObject **given, int number, double limit)
{
    Py_buffer held[BUFFERS];
    int taken = 0;
    PyObject *result = NULL;
    for (; taken < number; taken++) {
        int flags = taken == WORDS ? PyBUF_STRIDES : PyBUF_C_CONTIGUOUS | (taken < SIGNS ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(given[taken], &held[taken], flags) < 0)
            goto done;
    }
    const Py_buffer *words = &held[WORDS];
    if (words->ndim != 2 || (words->itemsize != 2 && words->itemsize != 4) || words->strides[1] != words->itemsize) {
        PyErr_SetString(PyExc_ValueError, "words are two-dimensional, of 2 or 4 bytes, and lie together in each row");
        goto done;
    }
    const int sketched = number > LOOKED;
    const Py_ssize_t rows = words->shape[0], size = words->shape[1], pairs = sketched ? held[PAIRS].len : 0;
    const Py_ssize_t squares = held[COLUMN_SQUARES].len ? size : 0;
    if (!is_room(&held[OUT], rows * (sketched ? WIDTH : size)) || !is_room(&held[ROW_SUMS], rows) ||
        !is_room(&held[COLUMN_SUMS], size) || !is_room(&held[ROW_SQUARES], rows) ||
        !is_room(&held[COLUMN_SQUARES], squares) || (sketched && !is_room(&held[SIGNS], size * WIDTH)) ||
        (pairs && pairs != (size + 1) / 2 * 2 * WIDTH * (Py_ssize_t)sizeof(uint16_t))) {
        PyErr_SetString(PyExc_ValueError, "the room for results, or the signs, are not of the shape of the words");
        goto done;
    }
    const Py_ssize_t number_taken = sketched ? held[PLACES].len / (Py_ssize_t)sizeof(int64_t) : 0;
    if (sketched && (held[PLACES].itemsize != (Py_ssize_t)sizeof(int64_t) ||
                     held[COLUMNS].len != number_taken * rows * words->itemsize ||
                     !are_below(held[PLACES].buf, number_taken, size))) {
        PyErr_SetString(PyExc_ValueError, "the columns to be taken are not there, or there is no room for them");
        goto done;
    }
    Facts facts = {.least = INT64_MAX, .most = INT64_MIN};
    const Block block = {
        .words = words->buf, .stride = words->strides[0], .rows = rows, .size = size, .itemsize = words->itemsize,
        .limit = (float)limit, .signs = sketched ? held[SIGNS].buf : NULL,
        .pairs = pairs && words->itemsize == 2 ? held[PAIRS].buf : NULL,
        .out = held[OUT].buf, .row_sums = held[ROW_SUMS].buf, .column_sums = held[COLUMN_SUMS].buf,
        .row_squares = held[ROW_SQUARES].buf, .column_squares = squares ? held[COLUMN_SQUARES].buf : NULL,
        .places = sketched ? held[PLACES].buf : NULL, .taken = number_taken,
        .columns = sketched ? held[COLUMNS].buf : NULL,
    };
    Py_BEGIN_ALLOW_THREADS
    (sketched ? sketch_at : look_at)(&block, &facts);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("LLKLdddd", (long long)facts.least, (long long)facts.most, (unsigned long long)facts.largest,
                           (long long)facts.zeros, facts.powers[0], facts.powers[1], facts.powers[2], facts.powers[3]);
done:
    while (taken > 0)
        PyBuffer_Release(&held[--taken]);
    return result;
}

static PyObject *look(PyObject *module, PyObject *args)
{
    PyObject *given[BUFFERS];
    double limit;
    (void)module;
    if (!PyArg_ParseTuple(args, "OdOOOOO:look", &given[WORDS], &limit, &given[OUT], &given[ROW_SUMS],
                          &given[COLUMN_SUMS], &given[ROW_SQUARES], &given[COLUMN_SQUARES]))
        return NULL;
    return take(given, LOOKED, limit);
}

static PyObject *sketch(PyObject *module, PyObject *args)
{
    PyObject *given[BUFFERS];
    double limit;
    (void)module;
    if (!PyArg_ParseTuple(args, "OdOOOOOOOOO:sketch", &given[WORDS], &limit, &given[SIGNS], &given[PAIRS],
                          &given[PLACES], &given[OUT], &given[ROW_SUMS], &given[COLUMN_SUMS], &given[ROW_SQUARES],
                          &given[COLUMN_SQUARES], &given[COLUMNS]))
        return NULL;
    return take(given, BUFFERS, limit);
}

static PyObject *level(PyObject *module, PyObject *args)
{
    (void)module;
    (void)args;
    return PyLong_FromLong(level_of_processor());
}

static PyMethodDef methods[] = {
    {"sketch_level", level, METH_NOARGS,
     "sketch_level()\n\nHow the products of sketch are taken here: 0 plainly, 1 with AVX-512, 2 of bf16 as it is stored too."},
    {"sketch", sketch, METH_VARARGS,
     "sketch(words, limit, signs, pairs, places, out, row_sums, column_sums, row_squares, column_squares, columns)\n\n"
     "As look, but in place of the numbers their products with signs (c, 32) float32 are written to out (b, 32).\n"
     "pairs (c / 2 rounded up, 32, 2) uint16 are the same in bf16, the signs of two columns beside each other, or empty:\n"
     "bf16 is then multiplied as it is stored. Column sums are added to, as in look. The columns at places (k,) int64\n"
     "are written to columns (k, b), as they are stored."},
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
