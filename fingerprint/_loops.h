/* What the compiled loops share: for which processors they are made, and looks at what they are given. */
#ifndef WEIGHTPRINT_LOOPS_H
#define WEIGHTPRINT_LOOPS_H

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define BY_PROCESSOR
#include <immintrin.h>
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define WIDE __attribute__((target("arch=x86-64-v4")))
#define WIDE_BFLOAT16 __attribute__((target("arch=x86-64-v4,avx512bf16")))
#else
#define FOR_EVERY_PROCESSOR
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static __inline
#endif

#define LINE 64 /* bytes of the cache */

/* 0: any processor; 1: with AVX-512; 2: with products of pairs of bf16 too. */
INLINE int level_of_processor(void)
{
#ifdef BY_PROCESSOR
    __builtin_cpu_init();
    return __builtin_cpu_supports("x86-64-v4") ? 1 + (__builtin_cpu_supports("avx512bf16") != 0) : 0;
#else
    return 0;
#endif
}

/* Whether a buffer is float32 memory for ``size`` numbers. */
INLINE int is_room(const Py_buffer *buffer, Py_ssize_t size)
{
    return buffer->itemsize == (Py_ssize_t)sizeof(float) && buffer->len == size * (Py_ssize_t)sizeof(float);
}

/* Whether all of some numbers are from 0 up to a bound. */
INLINE int are_below(const int64_t *numbers, Py_ssize_t count, Py_ssize_t bound)
{
    for (Py_ssize_t k = 0; k < count; k++)
        if (numbers[k] < 0 || numbers[k] >= bound)
            return 0;
    return 1;
}

/* The buffers of ``number`` objects, those from ``written`` on to be written to, the first ``strided`` of them in which
 * rows may lie apart; how many were had. */
INLINE int hold(PyObject **given, int number, int written, int strided, Py_buffer *held)
{
    int had = 0;
    for (; had < number; had++) {
        const int flags = had < strided ? PyBUF_STRIDES : PyBUF_C_CONTIGUOUS | (had >= written ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(given[had], &held[had], flags) < 0)
            break;
    }
    return had;
}

/* Gives back the buffers that were had: None, or an exception, the one that is there already or of ``wrong`` values. */
INLINE PyObject *let_go(Py_buffer *held, int had, const char *wrong)
{
    while (had > 0)
        PyBuffer_Release(&held[--had]);
    if (PyErr_Occurred())
        return NULL;
    if (wrong) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return NULL;
    }
    Py_RETURN_NONE;
}

#endif
