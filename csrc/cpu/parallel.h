// at::parallel_for, and proof that this file's vectors and threads are real: every kernel's source
// includes it.
#pragma once

#if defined(__x86_64__) && !defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
#error "at::vec would be scalar: see CMakeLists.txt"
#endif
#ifndef _OPENMP
#error "at::parallel_for would use one thread: add -fopenmp"
#endif

#include <ATen/Parallel.h>
