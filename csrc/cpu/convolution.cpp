// Convolutions of 3x3 and 5x5 on the CPU with 2.25 and 9 products for 4 outputs, by Winograd's
// algorithm: images are cut into tiles of 6x6, transformed, multiplied by the transformed weights in
// 36 small matrix products, and transformed back, block by block within the second-level cache.
#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/vector_activation.h"
#include "cpu/winograd.h"
#include "kernels.h"

namespace emorl {
namespace {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kAccumulators = 24, kWidest = 4;  // of 32 registers; vectors side by side
#else
constexpr int kAccumulators = 12, kWidest = 2;  // of 16
#endif
constexpr int64_t kBlock = 48;  // tiles transformed together: whole numbers of rows_for any width
constexpr int64_t kMaxTasks = 8;  // partial sums of the weights' gradient

template <typename T>
constexpr int64_t kLanes = at::vec::Vectorized<T>::size();

constexpr int rows_for(int vectors) { return std::min(12, kAccumulators / vectors); }

// c[i, j] = or += sum_d a(i, d) b[d, j] for kRows x kVectors accumulators. a(i, d) is a[i * lda + d],
// or a[d * lda + i] where kTransposed; then c is added to.
template <typename T, int kRows, int kVectors, bool kTransposed>
void product_block(
    int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc) {
  using Vec = at::vec::Vectorized<T>;
  Vec sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = Vec(T(0));
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vec row[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      row[j] = Vec::loadu(b + d * ldb + j * Vec::size());
    }
    for (int i = 0; i < kRows; ++i) {
      const Vec factor(kTransposed ? a[d * lda + i] : a[i * lda + d]);
      for (int j = 0; j < kVectors; ++j) {
        sum[i][j] = at::vec::fmadd(factor, row[j], sum[i][j]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      T* target = c + i * ldc + j * Vec::size();
      (kTransposed ? Vec::loadu(target) + sum[i][j] : sum[i][j]).store(target);
    }
  }
}

template <typename T, int kRows, int kVectors, bool kTransposed>
void product_of_width(
    int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t lda, const T* b, T* c) {
  for (int64_t n = 0; n < columns; n += kVectors * kLanes<T>) {
    for (int64_t m = 0; m < rows; m += kRows) {
      product_block<T, kRows, kVectors, kTransposed>(
          depth, a + (kTransposed ? m : m * lda), lda, b + n, columns, c + m * columns + n, columns);
    }
  }
}

// c[kBlock, columns] = a[kBlock, depth] b[depth, columns]
template <typename T, int kVectors = kWidest>
void multiply(int64_t columns, int64_t depth, const T* a, const T* b, T* c) {
  if constexpr (kVectors > 1) {
    if (columns % (kVectors * kLanes<T>) != 0) {
      return multiply<T, kVectors / 2>(columns, depth, a, b, c);
    }
  }
  product_of_width<T, rows_for(kVectors), kVectors, false>(kBlock, columns, depth, a, depth, b, c);
}

// c[rows, columns] += a[kBlock, rows]^T b[kBlock, columns]
template <typename T>
void add_transposed(int64_t rows, int64_t columns, const T* a, const T* b, T* c) {
  if (kWidest > 2 && columns % (2 * kLanes<T>) == 0) {
    product_of_width<T, 8, 2, true>(rows, columns, kBlock, a, rows, b, c);
  } else {
    product_of_width<T, 8, 1, true>(rows, columns, kBlock, a, rows, b, c);
  }
}

// The tiles of all images, in blocks; with `kernel` r each makes 7 - r squared outputs.
struct Tiling {
  int64_t out, down, across, per_image, count, blocks;

  explicit Tiling(const ConvolutionShape& s) : out(7 - s.kernel) {
    down = at::divup(s.out_height(), out);
    across = at::divup(s.out_width(), out);
    per_image = down * across;
    count = s.batch * per_image;
    blocks = at::divup(count, kBlock);
  }
};

// Where kSide x kSide pixels of a tile lie in images [batch, height, width, channels]; `nothing` for
// those that do not exist.
template <typename T, int kSide>
std::array<T*, kSide * kSide> pixels_of_tile(
    const Tiling& tiling, int64_t tile, int64_t offset, T* images, int64_t height, int64_t width,
    int64_t channels, T* nothing) {
  std::array<T*, kSide * kSide> at;
  const int64_t image = tile / tiling.per_image, place = tile % tiling.per_image;
  const int64_t top = place / tiling.across * tiling.out - offset;
  const int64_t left = place % tiling.across * tiling.out - offset;
  for (int64_t i = 0; i < kSide; ++i) {
    for (int64_t j = 0; j < kSide; ++j) {
      const int64_t y = top + i, x = left + j;
      const bool inside =
          tile < tiling.count && y >= 0 && y < height && x >= 0 && x < width;
      at[i * kSide + j] =
          inside ? images + ((image * height + y) * width + x) * channels : nothing;
    }
  }
  return at;
}

// One transformed block: winograd::kProducts matrices [kBlock, channels], a cache line apart from each other so
// that they do not all compete for the same places in the cache.
template <typename T>
struct Transformed {
  int64_t distance;
  std::unique_ptr<T[]> memory;

  explicit Transformed(int64_t channels)
      : distance(kBlock * channels + 64 / static_cast<int64_t>(sizeof(T))),
        memory(new T[winograd::kProducts * distance]) {}
  T* matrix(int64_t product) { return memory.get() + product * distance; }
};

// One tile of images, or, with an activation, of its gradient: made from that of its output as it is
// read, instead of in memory of its own.
template <typename T, int kSide, Activation kActivation>
struct Tile {
  std::array<const T*, kSide * kSide> values, outputs;

  // `where` gives pixels_of_tile of a tensor.
  template <typename Where>
  Tile(const ActivatedGradient<T>& from, const Where& where)
      : values(where(from.grad)),
        outputs(kActivation == Activation::kNone ? values : where(from.output)) {}

  at::vec::Vectorized<T> read(int64_t pixel, int64_t channel) const {
    using Vec = at::vec::Vectorized<T>;
    const Vec value = Vec::loadu(values[pixel] + channel);
    if constexpr (kActivation == Activation::kNone) {
      return value;
    } else {
      return activate_backward<kActivation>(value, Vec::loadu(outputs[pixel] + channel));
    }
  }
};

template <Activation kActivation, typename T>
void transform_images(
    const ConvolutionShape& s, const Tiling& tiling, int64_t block,
    const ActivatedGradient<T>& from, const T* zeros, Transformed<T>& to) {
  using Vec = at::vec::Vectorized<T>;
  for (int64_t t = 0; t < kBlock; ++t) {
    const Tile<T, winograd::kPoints, kActivation> tile(from, [&](const T* images) {
      return pixels_of_tile<const T, winograd::kPoints>(
          tiling, block * kBlock + t, s.padding, images, s.height, s.width, s.in_channels, zeros);
    });
    for (int64_t c = 0; c < s.in_channels; c += Vec::size()) {
      T* target = to.matrix(0) + t * s.in_channels + c;
      winograd::transform_tile<winograd::kPoints, winograd::kPoints, Vec>(
          winograd::transform_input<Vec>,
          [&](int i, int j) { return tile.read(i * winograd::kPoints + j, c); },
          [&](int i, int j, const Vec& value) {
            value.store(target + (i * winograd::kPoints + j) * to.distance);
          });
    }
  }
}

template <typename T, int kOut, Activation kActivation>
void write_outputs(
    const ConvolutionShape& s, const Tiling& tiling, int64_t block, const T* bias, T* y,
    T* nowhere, Transformed<T>& from) {
  using Vec = at::vec::Vectorized<T>;
  for (int64_t t = 0; t < kBlock && block * kBlock + t < tiling.count; ++t) {
    const auto at = pixels_of_tile<T, kOut>(
        tiling, block * kBlock + t, 0, y, s.out_height(), s.out_width(), s.out_channels, nowhere);
    for (int64_t c = 0; c < s.out_channels; c += Vec::size()) {
      const T* source = from.matrix(0) + t * s.out_channels + c;
      const Vec shift = bias == nullptr ? Vec(T(0)) : Vec::loadu(bias + c);
      winograd::transform_tile<winograd::kPoints, kOut, Vec>(
          winograd::evaluate_transposed<kOut, Vec>,
          [&](int i, int j) { return Vec::loadu(source + (i * winograd::kPoints + j) * from.distance); },
          [&](int i, int j, const Vec& value) {
            activate<kActivation>(value + shift).store(at[i * kOut + j] + c);
          });
    }
  }
}

// Transforms the gradient of the outputs, and adds it up in grad_bias.
template <typename T, int kOut, Activation kActivation>
void transform_gradients(
    const ConvolutionShape& s, const Tiling& tiling, int64_t block,
    const ActivatedGradient<T>& from, const T* zeros, T* grad_bias, Transformed<T>& to) {
  using Vec = at::vec::Vectorized<T>;
  for (int64_t t = 0; t < kBlock; ++t) {
    const Tile<T, kOut, kActivation> tile(from, [&](const T* images) {
      return pixels_of_tile<const T, kOut>(
          tiling, block * kBlock + t, 0, images, s.out_height(), s.out_width(), s.out_channels,
          zeros);
    });
    for (int64_t c = 0; c < s.out_channels; c += Vec::size()) {
      T* target = to.matrix(0) + t * s.out_channels + c;
      Vec sum = Vec::loadu(grad_bias + c);
      winograd::transform_tile<kOut, winograd::kPoints, Vec>(
          winograd::evaluate<kOut, Vec>,
          [&](int i, int j) {
            const Vec value = tile.read(i * kOut + j, c);
            sum = sum + value;
            return value;
          },
          [&](int i, int j, const Vec& value) {
            value.store(target + (i * winograd::kPoints + j) * to.distance);
          });
      sum.store(grad_bias + c);
    }
  }
}

// weight [kTaps, kTaps, in, out] -> factors [kProducts, in, out], or gradients the other way
template <typename T, int kFrom, int kTo, typename Transform>
void transform_weights(const ConvolutionShape& s, const Transform& transform, const T* from, T* to) {
  using Vec = at::vec::Vectorized<T>;
  const int64_t matrix = s.in_channels * s.out_channels;
  at::parallel_for(0, matrix / Vec::size(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * Vec::size(); c < end * Vec::size(); c += Vec::size()) {
      winograd::transform_tile<kFrom, kTo, Vec>(
          transform, [&](int i, int j) { return Vec::loadu(from + (i * kFrom + j) * matrix + c); },
          [&](int i, int j, const Vec& value) { value.store(to + (i * kTo + j) * matrix + c); });
    }
  });
}

template <typename T, int kOut, Activation kBefore, Activation kAfter>
void convolve(
    const ConvolutionShape& s, const ActivatedGradient<T>& x, const T* weight, const T* bias, T* y) {
  constexpr int kTaps = winograd::kPoints + 1 - kOut;
  const Tiling tiling(s);
  const int64_t matrix = s.in_channels * s.out_channels;
  const std::vector<T> zeros(s.in_channels);
  const std::unique_ptr<T[]> factors(new T[winograd::kProducts * matrix]);
  transform_weights<T, kTaps, winograd::kPoints>(
      s, winograd::transform_weight<kTaps, at::vec::Vectorized<T>>, weight, factors.get());
  at::parallel_for(0, tiling.blocks, 1, [&](int64_t begin, int64_t end) {
    Transformed<T> input(s.in_channels), output(s.out_channels);
    std::vector<T> nowhere(s.out_channels);
    for (int64_t block = begin; block < end; ++block) {
      transform_images<kBefore>(s, tiling, block, x, zeros.data(), input);
      for (int64_t p = 0; p < winograd::kProducts; ++p) {
        multiply(
            s.out_channels, s.in_channels, input.matrix(p), factors.get() + p * matrix,
            output.matrix(p));
      }
      write_outputs<T, kOut, kAfter>(s, tiling, block, bias, y, nowhere.data(), output);
    }
  });
}

template <typename T, int kOut, Activation kActivation>
void weight_gradient(
    const ConvolutionShape& s, const T* x, const ActivatedGradient<T>& from, T* grad_weight,
    T* grad_bias) {
  constexpr int kTaps = winograd::kPoints + 1 - kOut;
  const Tiling tiling(s);
  const int64_t tasks = std::min(kMaxTasks, tiling.blocks), matrix = s.in_channels * s.out_channels;
  const std::vector<T> zeros(std::max(s.in_channels, s.out_channels));
  std::vector<T> sums(tasks * winograd::kProducts * matrix), bias_sums(tasks * s.out_channels);
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    Transformed<T> input(s.in_channels), gradient(s.out_channels);
    for (int64_t task = begin; task < end; ++task) {
      for (int64_t block = task * tiling.blocks / tasks; block < (task + 1) * tiling.blocks / tasks;
           ++block) {
        transform_images<Activation::kNone>(
            s, tiling, block, ActivatedGradient<T>{x, nullptr}, zeros.data(), input);
        transform_gradients<T, kOut, kActivation>(
            s, tiling, block, from, zeros.data(), bias_sums.data() + task * s.out_channels,
            gradient);
        for (int64_t p = 0; p < winograd::kProducts; ++p) {
          add_transposed(
              s.in_channels, s.out_channels, input.matrix(p), gradient.matrix(p),
              sums.data() + (task * winograd::kProducts + p) * matrix);
        }
      }
    }
  });
  // in a fixed order: grad[i] = sum_task sums[task, i]
  const auto reduce = [&](const std::vector<T>& partial, int64_t size, T* to) {
    at::parallel_for(0, size, 1 << 14, [&](int64_t begin, int64_t end) {
      std::copy(partial.data() + begin, partial.data() + end, to + begin);
      for (int64_t task = 1; task < tasks; ++task) {
        for (int64_t i = begin; i < end; ++i) {
          to[i] += partial[task * size + i];
        }
      }
    });
  };
  const std::unique_ptr<T[]> factors(new T[winograd::kProducts * matrix]);
  reduce(sums, winograd::kProducts * matrix, factors.get());
  reduce(bias_sums, s.out_channels, grad_bias);
  transform_weights<T, winograd::kPoints, kTaps>(
      s, winograd::transform_weight_gradient<kTaps, at::vec::Vectorized<T>>, factors.get(),
      grad_weight);
}

// Calls function<kOut, kActivation>().
template <typename Function>
void choose(const ConvolutionShape& s, const Function& function) {
  const auto with = [&]<Activation kActivation>() {
    s.kernel == 3 ? function.template operator()<4, kActivation>()
                  : function.template operator()<2, kActivation>();
  };
  switch (s.activation) {
    case Activation::kNone: with.template operator()<Activation::kNone>(); break;
    case Activation::kRelu: with.template operator()<Activation::kRelu>(); break;
    case Activation::kElu: with.template operator()<Activation::kElu>(); break;
  }
}

}  // namespace

template <typename T>
void convolution_cpu(
    const ConvolutionShape& s, const T* x, const T* weight, const T* bias, T* y) {
  choose(s, [&]<int kOut, Activation kActivation>() {
    convolve<T, kOut, Activation::kNone, kActivation>(s, {x, nullptr}, weight, bias, y);
  });
}

template <typename T>
void convolution_input_gradient_cpu(
    const ConvolutionShape& s, const ActivatedGradient<T>& from, const T* weight, T* grad_x) {
  choose(s, [&]<int kOut, Activation kActivation>() {
    convolve<T, kOut, kActivation, Activation::kNone>(s, from, weight, nullptr, grad_x);
  });
}

template <typename T>
void convolution_weight_gradient_cpu(
    const ConvolutionShape& s, const T* x, const ActivatedGradient<T>& from, T* grad_weight,
    T* grad_bias) {
  choose(s, [&]<int kOut, Activation kActivation>() {
    weight_gradient<T, kOut, kActivation>(s, x, from, grad_weight, grad_bias);
  });
}

#define INSTANTIATE(T)                                                                       \
  template void convolution_cpu<T>(                                                          \
      const ConvolutionShape&, const T*, const T*, const T*, T*);                            \
  template void convolution_input_gradient_cpu<T>(                                           \
      const ConvolutionShape&, const ActivatedGradient<T>&, const T*, T*);                   \
  template void convolution_weight_gradient_cpu<T>(                                          \
      const ConvolutionShape&, const T*, const ActivatedGradient<T>&, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace emorl
