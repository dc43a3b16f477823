/* What ``patterns`` and ``content`` ask of a few slices and runs of every matrix. They say the same with numpy, more
 * slowly: the arithmetic takes less time than calling for each step of it.
 */
#include "_loops.h"

#include <math.h>
#include <stdlib.h>

#define ORDER 4           /* entries from which a recurrence tells the next */
#define SHORT 20          /* entries below which they are two */
#define FEWEST 16         /* entries below which there is none */
#define JUMPS 3           /* entries of a slice that it need not tell */
#define SPREAD 6.0        /* participation ratio from which these are forgiven */
#define TINY 1e-300
#define LAGS 4            /* distances that are tried at a time */
#define AS_GOOD 0.03      /* beside the best correlation */
#define PARTS 20          /* of the length of a slice */
#define NEIGHBOURING 6    /* of them, within which what is steep has half of its energy */
#define DOMINANT 0.2f     /* share of the energy that one entry of it may have */
#define STEPS 3           /* of a grid, that the smallest gap may be */
#define BEGINNING 16      /* entries of a run that are tried where all are on no grid */
#define GAPS 7            /* from which a run tells anything without equal entries */
#define TOLERANCE 0.04    /* of a step */
#define MOST_STEPS 256.0
#define LONGEST 64        /* entries of a run */

typedef struct {
    Py_ssize_t rows, size;
    const void *numbers;
} Slices;

/* Solves the equations of ``order`` unknowns in place, with partial pivoting. */
static void solve(double equations[ORDER][ORDER + 1], int order)
{
    for (int i = 0; i < order; i++) {
        int best = i;
        for (int r = i + 1; r < order; r++)
            if (fabs(equations[r][i]) > fabs(equations[best][i]))
                best = r;
        for (int j = i; j <= order; j++) {
            const double held = equations[i][j];
            equations[i][j] = equations[best][j];
            equations[best][j] = held;
        }
        for (int r = i + 1; r < order; r++) {
            const double share = equations[r][i] / equations[i][i];
            for (int j = i; j <= order; j++)
                equations[r][j] -= share * equations[i][j];
        }
    }
    for (int i = order - 1; i >= 0; i--) {
        for (int j = i + 1; j < order; j++)
            equations[i][order] -= equations[i][j] * equations[j][order];
        equations[i][order] /= equations[i][i];
    }
}

FOR_EVERY_PROCESSOR
static double unexplained_of(const double *slice, Py_ssize_t size)
{
    if (size < FEWEST)
        return 1.0;
    const int order = size >= SHORT ? ORDER : 2;
    double energy = 0.0, fourths = 0.0, products[ORDER + 1][ORDER + 1], equations[ORDER][ORDER + 1];
    for (Py_ssize_t t = 0; t < size; t++) {
        const double square = slice[t] * slice[t];
        energy += square;
        fourths += square * square;
    }
    for (int i = 0; i <= order; i++)
        for (int j = 0; j <= i; j++) {
            double sum = 0.0;
            for (Py_ssize_t t = 0; t < size - order; t++)
                sum += slice[t + i] * slice[t + j];
            products[i][j] = products[j][i] = sum;
        }
    for (int i = 0; i < order; i++) {
        for (int j = 0; j < order; j++)
            equations[i][j] = products[i][j];
        equations[i][i] += 1e-10 * energy + TINY;
        equations[i][order] = products[i][order];
    }
    solve(equations, order);
    double total = 0.0, largest[JUMPS] = {0.0};
    for (Py_ssize_t t = 0; t < size - order; t++) {
        double error = slice[t + order];
        for (int j = 0; j < order; j++)
            error -= equations[j][order] * slice[t + j];
        error *= error;
        total += error;
        for (int k = 0; k < JUMPS && error > 0.0; k++)
            if (error > largest[k]) {
                const double held = largest[k];
                largest[k] = error;
                error = held;
            }
    }
    if (energy * energy >= SPREAD * fourths)
        for (int k = 0; k < JUMPS; k++)
            total -= largest[k];
    const double whole = products[order][order] > TINY ? products[order][order] : TINY;
    return (total < 0.0 ? 0.0 : total) / whole;
}

/* Products of a slice with itself moved by LAGS distances from ``first`` on: each over all entries that it then has. */
FOR_EVERY_PROCESSOR
static void moved_by(const float *slice, Py_ssize_t size, Py_ssize_t first, float *products)
{
    const Py_ssize_t common = size - first - (LAGS - 1);
    float sums[LAGS] = {0.0f};
    for (Py_ssize_t t = 0; t < common; t++)
        for (int k = 0; k < LAGS; k++)
            sums[k] += slice[t] * slice[t + first + k];
    for (int k = 0; k < LAGS; k++) {
        for (Py_ssize_t t = common > 0 ? common : 0; t < size - first - k; t++)
            sums[k] += slice[t] * slice[t + first + k];
        products[k] = sums[k];
    }
}

/* ``room`` is for ``size`` numbers over the largest of them, ``before`` for as many sums of squares, ``correlations``
 * for half as many numbers. */
static void repetition_of(const double *slice, Py_ssize_t size, float *room, double *before, double *correlations,
                          double *best, int64_t *distance)
{
    double energy = 0.0, fourths = 0.0, largest = TINY;
    for (Py_ssize_t t = 0; t < size; t++) {
        const double square = slice[t] * slice[t];
        energy += square;
        fourths += square * square;
        before[t] = energy;
        largest = fabs(slice[t]) > largest ? fabs(slice[t]) : largest;
    }
    for (Py_ssize_t t = 0; t < size; t++)
        room[t] = (float)(slice[t] / largest);
    double most = -INFINITY;
    float products[LAGS];
    for (Py_ssize_t d = 1; d <= size / 2; d++) {
        if ((d - 1) % LAGS == 0)
            moved_by(room, size, d, products);
        const double product = (double)products[(d - 1) % LAGS] * largest * largest;
        const double behind = before[size - 1 - d], ahead = energy - before[d - 1];
        const double between = ahead > 0.0 ? sqrt(behind * ahead) : 0.0;
        const double scale = between > 0.5 * energy ? between : 0.5 * energy;
        correlations[d - 1] = product / (scale > TINY ? scale : TINY);
        most = correlations[d - 1] > most ? correlations[d - 1] : most;
    }
    *distance = 1;
    while (*distance < size / 2 && !(correlations[*distance - 1] >= most - AS_GOOD))
        ++*distance;
    *best = energy * energy >= SPREAD * fourths ? most : 0.0;
}

FOR_EVERY_PROCESSOR
static int may_be_steep(const float *slice, Py_ssize_t size)
{
    float largest = 1e-38f, parts[PARTS], total = 0.0f;
    for (Py_ssize_t t = 0; t < size; t++) {
        const float magnitude = fabsf(slice[t]);
        largest = magnitude > largest ? magnitude : largest;
    }
    for (Py_ssize_t k = 0; k < PARTS; k++) {
        float sum = 0.0f;
        for (Py_ssize_t t = k * size / PARTS; t < (k + 1) * size / PARTS; t++) {
            const float number = slice[t] / largest;
            sum += number * number;
        }
        parts[k] = sum;
        total += sum;
    }
    if (total * DOMINANT <= 1.0f)
        return 1;
    for (int k = 0; k + NEIGHBOURING <= PARTS; k++) {
        float together = 0.0f;
        for (int j = 0; j < NEIGHBOURING; j++)
            together += parts[k + j];
        if (together >= 0.5f * total)
            return 1;
    }
    return 0;
}

/* The entries of a run that are not zero, in ascending order; how many they are. */
static Py_ssize_t in_order(const double *run, Py_ssize_t size, double *ordered)
{
    Py_ssize_t count = 0;
    for (Py_ssize_t t = 0; t < size; t++) {
        if (run[t] == 0.0)
            continue;
        Py_ssize_t place = count++;
        for (; place > 0 && ordered[place - 1] > run[t]; place--)
            ordered[place] = ordered[place - 1];
        ordered[place] = run[t];
    }
    return count;
}

/* How many levels the grid of a run has: 0 if it lies on none, -1 if it is constant; ``levels`` where that is known. */
static int64_t levels_of(const double *run, Py_ssize_t size, int64_t levels)
{
    if (levels)
        return levels;
    double ordered[LONGEST], gaps[LONGEST], least = INFINITY;
    const Py_ssize_t count = in_order(run, size, ordered);
    Py_ssize_t number = 0;
    for (Py_ssize_t t = 1; t < count; t++) {
        const double gap = ordered[t] - ordered[t - 1];
        if (!(gap > 0.0) || gap == INFINITY)
            continue;
        gaps[number++] = gap;
        least = gap < least ? gap : least;
    }
    if (!number)
        return -1;
    if (number < GAPS && count < 2 * (number + 1))
        return 0;
    const double span = ordered[count - 1] - ordered[0];
    for (int steps = 1; steps <= STEPS; steps++) {
        int even = 1;
        for (Py_ssize_t k = 0; k < number && even; k++) {
            const double ratio = gaps[k] / least * steps;
            even = fabs(ratio - rint(ratio)) < TOLERANCE;
        }
        const double step = least / steps;
        if (even && span <= step * MOST_STEPS)
            return (int64_t)rint(span / step) + 1;
    }
    return 0;
}

/* How many different numbers other than zero a run has, up to one more than ``most``; -1 if it has fewer than
 * ``least`` numbers other than zero. */
static int64_t different_in(const double *run, Py_ssize_t size, Py_ssize_t least, int64_t most)
{
    double found[LONGEST];
    Py_ssize_t present = 0;
    int64_t number = 0;
    for (Py_ssize_t t = 0; t < size; t++)
        present += run[t] != 0.0;
    if (present < least)
        return -1;
    for (Py_ssize_t t = 0; t < size && number <= most; t++) {
        if (run[t] == 0.0)
            continue;
        int64_t k = 0;
        while (k < number && found[k] != run[t])
            k++;
        if (k == number)
            found[number++] = run[t];
    }
    return number;
}

enum { NUMBERS, FIRST, SECOND, BUFFERS };

/* The slices that the first buffer holds, of numbers of ``itemsize`` bytes; none in one of others, or if not all of
 * the buffers were had. */
static Slices slices_of(const Py_buffer *held, int all, Py_ssize_t itemsize)
{
    if (!all || held->ndim != 2 || held->itemsize != itemsize)
        return (Slices){0, 0, NULL};
    return (Slices){held->shape[0], held->shape[1], held->buf};
}

static PyObject *unexplained(PyObject *module, PyObject *args)
{
    PyObject *given[BUFFERS];
    Py_buffer held[BUFFERS];
    (void)module;
    if (!PyArg_ParseTuple(args, "OO:unexplained", &given[NUMBERS], &given[FIRST]))
        return NULL;
    const int had = hold(given, SECOND, FIRST, 0, held);
    const Slices slices = slices_of(held, had == SECOND, sizeof(double));
    if (!slices.numbers || held[FIRST].len != slices.rows * (Py_ssize_t)sizeof(double))
        return let_go(held, had, "slices of float64, and room for a number of each");
    double *out = held[FIRST].buf;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < slices.rows; i++)
        out[i] = unexplained_of((const double *)slices.numbers + i * slices.size, slices.size);
    Py_END_ALLOW_THREADS
    return let_go(held, had, NULL);
}

static PyObject *repetition(PyObject *module, PyObject *args)
{
    PyObject *given[BUFFERS];
    Py_buffer held[BUFFERS];
    (void)module;
    if (!PyArg_ParseTuple(args, "OOO:repetition", &given[NUMBERS], &given[FIRST], &given[SECOND]))
        return NULL;
    const int had = hold(given, BUFFERS, FIRST, 0, held);
    const Slices slices = slices_of(held, had == BUFFERS, sizeof(double));
    if (!slices.numbers || slices.size < 2 || held[FIRST].len != slices.rows * (Py_ssize_t)sizeof(double) ||
        held[SECOND].len != slices.rows * (Py_ssize_t)sizeof(int64_t))
        return let_go(held, had, "slices of float64, two numbers or more, and room for two numbers of each");
    double *const sums = malloc((size_t)slices.size * (2 * sizeof(double) + sizeof(float)));
    if (!sums) {
        PyErr_NoMemory();
        return let_go(held, had, NULL);
    }
    double *best = held[FIRST].buf;
    int64_t *distance = held[SECOND].buf;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < slices.rows; i++)
        repetition_of((const double *)slices.numbers + i * slices.size, slices.size, (float *)(sums + 2 * slices.size),
                      sums, sums + slices.size, best + i, distance + i);
    Py_END_ALLOW_THREADS
    free(sums);
    return let_go(held, had, NULL);
}

static PyObject *any_steep(PyObject *module, PyObject *args)
{
    PyObject *given[BUFFERS];
    Py_buffer held[BUFFERS];
    (void)module;
    if (!PyArg_ParseTuple(args, "O:any_steep", &given[NUMBERS]))
        return NULL;
    const int had = hold(given, FIRST, FIRST, 0, held);
    const Slices slices = slices_of(held, had == FIRST, sizeof(float));
    if (!slices.numbers)
        return let_go(held, had, "slices of float32");
    int found = 0;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < slices.rows && !found; i++)
        found = may_be_steep((const float *)slices.numbers + i * slices.size, slices.size);
    Py_END_ALLOW_THREADS
    PyObject *none = let_go(held, had, NULL);
    Py_XDECREF(none);
    return none ? PyBool_FromLong(found) : NULL;
}

static PyObject *levels(PyObject *module, PyObject *args)
{
    PyObject *given[BUFFERS];
    Py_buffer held[BUFFERS];
    (void)module;
    if (!PyArg_ParseTuple(args, "OO:levels", &given[NUMBERS], &given[FIRST]))
        return NULL;
    const int had = hold(given, SECOND, FIRST, 0, held);
    const Slices runs = slices_of(held, had == SECOND, sizeof(double));
    if (!runs.numbers || runs.size > LONGEST || held[FIRST].len != runs.rows * (Py_ssize_t)sizeof(int64_t))
        return let_go(held, had, "runs of up to 64 numbers of float64, and room for a number of each");
    int64_t *out = held[FIRST].buf;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < runs.rows; i++) {
        const double *run = (const double *)runs.numbers + i * runs.size;
        out[i] = levels_of(run, runs.size, 0);
        out[i] = levels_of(run, runs.size < BEGINNING ? runs.size : BEGINNING, out[i]);
    }
    Py_END_ALLOW_THREADS
    return let_go(held, had, NULL);
}

static PyObject *different(PyObject *module, PyObject *args)
{
    PyObject *given[BUFFERS];
    Py_buffer held[BUFFERS];
    Py_ssize_t least;
    long long most;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOnL:different", &given[NUMBERS], &given[FIRST], &least, &most))
        return NULL;
    const int had = hold(given, SECOND, FIRST, 0, held);
    const Slices runs = slices_of(held, had == SECOND, sizeof(double));
    if (!runs.numbers || most < 0 || most >= LONGEST || held[FIRST].len != runs.rows * (Py_ssize_t)sizeof(int64_t))
        return let_go(held, had, "runs of float64, room for a number of each, and most from 0 to 63");
    int64_t *out = held[FIRST].buf;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < runs.rows; i++)
        out[i] = different_in((const double *)runs.numbers + i * runs.size, runs.size, least, most);
    Py_END_ALLOW_THREADS
    return let_go(held, had, NULL);
}

static PyMethodDef methods[] = {
    {"unexplained", unexplained, METH_VARARGS,
     "unexplained(slices, out)\n\n"
     "Write what patterns.unexplained says of slices (m, n) float64 to out (m,) float64. Raises ValueError if shapes or\n"
     "types do not fit, as the others do."},
    {"repetition", repetition, METH_VARARGS,
     "repetition(slices, best, distance)\n\n"
     "Write what patterns.repetition says of slices (m, n) float64, n from 2, to best (m,) float64 and distance (m,)\n"
     "int64. Raises MemoryError too."},
    {"any_steep", any_steep, METH_VARARGS,
     "any_steep(slices)\n\nWhether one of slices (m, n) float32 has half of its energy in six twentieths of its length, or\n"
     "a fifth of it in one entry."},
    {"levels", levels, METH_VARARGS,
     "levels(runs, out)\n\nWrite the levels of the grids of runs (m, n) float64, n up to 64, to out (m,) int64: see content."},
    {"different", different, METH_VARARGS,
     "different(runs, out, least, most)\n\n"
     "Write how many different numbers other than zero each of runs (m, n) float64 has, at most one more than most, to\n"
     "out (m,) int64; -1 where fewer than least are other than zero."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_patterns", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__patterns(void)
{
    return PyModule_Create(&definition);
}
