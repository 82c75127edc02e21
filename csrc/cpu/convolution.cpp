// Convolutions on the CPU by Winograd's algorithm: of 3x3 in two dimensions, with 2.25 products
// instead of 9 for an output, of 5x5 along rows, with 10 instead of 25. Images are cut into tiles
// that overlap, transformed, multiplied by the transformed weights in small matrix products, and
// transformed back, block by block within the second-level cache.
#include <algorithm>
#include <array>

#include "convolution.h"
#include "cpu/gemm.h"
#include "cpu/vector.h"
#include "cpu/winograd.h"

namespace emorl::convolution {
namespace {

constexpr int64_t kFewChannels = 16;  // see multiply_block

// The first output of a tile.
struct Place {
  int64_t image, y, x;
};

// In two dimensions. A block has tiles of any images, whose products are a row of a matrix each.
struct Square {
  static constexpr bool kSquare = true;
  static constexpr int kPairs = 2, kTaps = 3, kSide = winograd::kPoints<kPairs>;
  static constexpr int kOut = kSide + 1 - kTaps, kProducts = kSide * kSide, kRowTaps = 1;
  static constexpr int64_t kMaxTasks = 8;         // partial sums of the weights' gradient
  static constexpr int64_t kRows = 48, step = 0;  // of a block; `step` as in Lines
  int64_t down, across, count, blocks;

  explicit Square(const Shape& s)
      : down(at::divup(s.out_height(), kOut)),
        across(at::divup(s.out_width(), kOut)),
        count(s.batch * down * across),
        blocks(at::divup(count, kRows)) {}
  int64_t outputs(int64_t block) const { return std::min(kRows, count - block * kRows); }
  int64_t inputs(int64_t block) const { return outputs(block); }
  Place place(int64_t block, int64_t row) const {
    const int64_t tile = block * kRows + row, within = tile % (down * across);
    return {tile / (down * across), within / across * kOut, within % across * kOut};
  }
};

// In one dimension. A block has some rows of an image, and `step` tiles in each. The output of a
// tile needs the products of the same tile in kRowTaps rows of the input.
struct Lines {
  static constexpr bool kSquare = false;
  static constexpr int kPairs = 3, kTaps = 5, kSide = winograd::kPoints<kPairs>;
  static constexpr int kOut = kSide + 1 - kTaps, kProducts = kSide, kRowTaps = kTaps;
  static constexpr int64_t kMaxTasks = 16;  // with 8, longer sums round a third worse
  static constexpr int64_t kRows = 96;      // wanted in a block
  int64_t height, step, lines, per_image, blocks;

  explicit Lines(const Shape& s)
      : height(s.out_height()),
        step(at::divup(s.out_width(), kOut)),
        lines(at::divup(height, at::divup(height, std::max<int64_t>(1, kRows / step)))),
        per_image(at::divup(height, lines)),
        blocks(s.batch * per_image) {}
  int64_t outputs(int64_t block) const {
    return std::min(lines, height - block % per_image * lines) * step;
  }
  int64_t inputs(int64_t block) const { return outputs(block) + (kRowTaps - 1) * step; }
  Place place(int64_t block, int64_t row) const {
    const int64_t y = block % per_image * lines + row / step;
    return {block / per_image, y, row % step * kOut};
  }
};

// The pixels of a tile of images [batch, height, width, channels]; `nothing` for those that do not
// exist.
template <typename Scheme, int kWidth, typename T>
std::array<T*, Scheme::kSquare ? kWidth * kWidth : kWidth> pixels(
    const Place& place, int64_t padding, T* images, int64_t height, int64_t width, int64_t channels,
    T* nothing) {
  std::array<T*, Scheme::kSquare ? kWidth * kWidth : kWidth> tile;
  for (size_t i = 0; i < tile.size(); ++i) {
    const int64_t y = place.y + static_cast<int64_t>(i / kWidth) - padding;
    const int64_t x = place.x + static_cast<int64_t>(i % kWidth) - padding;
    const bool inside = y >= 0 && y < height && x >= 0 && x < width;
    tile[i] = inside ? images + ((place.image * height + y) * width + x) * channels : nothing;
  }
  return tile;
}

// One transformed block: a matrix [rows, channels] for each product, a cache line apart from each
// other so that they do not all compete for the same places in the cache.
template <typename Scheme, typename T>
struct Transformed {
  int64_t distance;
  AlignedVector<T> memory;

  Transformed(int64_t rows, int64_t channels)
      : distance((rows + kRowsAtOnce) * channels + 64 / static_cast<int64_t>(sizeof(T))),
        memory(Scheme::kProducts * distance) {}
  T* matrix(int64_t product) { return memory.data() + product * distance; }
};

// One tile of images, or, with an activation, of its gradient: made from that of its output as it
// is read, instead of in memory of its own.
template <Activation kActivation, typename T, size_t kPixels>
struct Tile {
  std::array<const T*, kPixels> values, outputs;

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

// `where` gives the pixels of a tensor.
template <Activation kActivation, typename T, typename Where>
auto tile_of(const ActivatedGradient<T>& from, const Where& where) {
  const auto values = where(from.grad);
  return Tile<kActivation, T, values.size()>{
      values, kActivation == Activation::kNone ? values : where(from.output)};
}

template <Activation kActivation, typename Scheme, typename T>
void transform_images(
    const Shape& s, const Scheme& scheme, int64_t block, const ActivatedGradient<T>& from,
    const T* zeros, Transformed<Scheme, T>& to) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int kSide = Scheme::kSide;
  for (int64_t row = 0; row < scheme.inputs(block); ++row) {
    const Place place = scheme.place(block, row);
    const auto tile = tile_of<kActivation>(from, [&](const T* images) {
      return pixels<Scheme, kSide>(
          place, s.padding, images, s.height, s.width, s.in_channels, zeros);
    });
    for (int64_t c = 0; c < s.in_channels; c += Vec::size()) {
      T* target = to.matrix(0) + row * s.in_channels + c;
      winograd::transform_tile<Scheme::kSquare, kSide, kSide, Vec>(
          winograd::transform_input<Scheme::kPairs, Vec>,
          [&](int i, int j) { return tile.read(i * kSide + j, c); },
          [&](int i, int j, const Vec& value) {
            value.store(target + (i * kSide + j) * to.distance);
          });
    }
  }
}

template <Activation kActivation, typename Scheme, typename T>
void write_outputs(
    const Shape& s, const Scheme& scheme, int64_t block, const T* bias, T* y, T* nowhere,
    Transformed<Scheme, T>& from) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int kSide = Scheme::kSide, kOut = Scheme::kOut;
  for (int64_t row = 0; row < scheme.outputs(block); ++row) {
    const auto targets = pixels<Scheme, kOut>(
        scheme.place(block, row), 0, y, s.out_height(), s.out_width(), s.out_channels, nowhere);
    for (int64_t c = 0; c < s.out_channels; c += Vec::size()) {
      const T* source = from.matrix(0) + row * s.out_channels + c;
      const Vec shift = bias == nullptr ? Vec(T(0)) : Vec::loadu(bias + c);
      winograd::transform_tile<Scheme::kSquare, kSide, kOut, Vec>(
          winograd::evaluate_transposed<Scheme::kPairs, kOut, Vec>,
          [&](int i, int j) { return Vec::loadu(source + (i * kSide + j) * from.distance); },
          [&](int i, int j, const Vec& value) {
            activate<kActivation>(value + shift).store(targets[i * kOut + j] + c);
          });
    }
  }
}

// Transforms the gradient of the outputs, and adds it up in grad_bias.
template <Activation kActivation, typename Scheme, typename T>
void transform_gradients(
    const Shape& s, const Scheme& scheme, int64_t block, const ActivatedGradient<T>& from,
    const T* zeros, T* grad_bias, Transformed<Scheme, T>& to) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int kSide = Scheme::kSide, kOut = Scheme::kOut;
  for (int64_t row = 0; row < scheme.outputs(block); ++row) {
    const Place place = scheme.place(block, row);
    const auto tile = tile_of<kActivation>(from, [&](const T* images) {
      return pixels<Scheme, kOut>(
          place, 0, images, s.out_height(), s.out_width(), s.out_channels, zeros);
    });
    for (int64_t c = 0; c < s.out_channels; c += Vec::size()) {
      T* target = to.matrix(0) + row * s.out_channels + c;
      Vec sum = Vec::loadu(grad_bias + c);
      winograd::transform_tile<Scheme::kSquare, kOut, kSide, Vec>(
          winograd::evaluate<Scheme::kPairs, kOut, Vec>,
          [&](int i, int j) {
            const Vec value = tile.read(i * kOut + j, c);
            sum = sum + value;
            return value;
          },
          [&](int i, int j, const Vec& value) {
            value.store(target + (i * kSide + j) * to.distance);
          });
      sum.store(grad_bias + c);
    }
  }
}

// weight [kTaps, kTaps, in, out] and factors [kProducts, kRowTaps, in, out], one of which is made
// from the other
template <typename Scheme, int kFrom, int kTo, typename T, typename Transform>
void transform_weights(const Shape& s, const Transform& transform, const T* from, T* to) {
  using Vec = at::vec::Vectorized<T>;
  constexpr int kRowTaps = Scheme::kRowTaps;
  const int64_t matrix = s.in_channels * s.out_channels;
  // the distance of (i, j) of a tile's: factors have the row's tap last
  const auto distance = [&](int width, int i, int j) {
    return (i * width + j) * matrix * (width == Scheme::kSide ? kRowTaps : 1);
  };
  at::parallel_for(0, kRowTaps * matrix / Vec::size(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin * Vec::size(); index < end * Vec::size(); index += Vec::size()) {
      const int64_t tap = index / matrix, c = index % matrix;
      const auto first = [&](int width) {
        return (width == Scheme::kSide ? tap : tap * Scheme::kTaps) * matrix + c;
      };
      winograd::transform_tile<Scheme::kSquare, kFrom, kTo, Vec>(
          transform,
          [&](int i, int j) { return Vec::loadu(from + first(kFrom) + distance(kFrom, i, j)); },
          [&](int i, int j, const Vec& value) {
            value.store(to + first(kTo) + distance(kTo, i, j));
          });
    }
  });
}

// The products of a block: output = input * factors, for each of kProducts. Few channels make short
// sums, and loading and storing these for every tap would take as long as the multiplications; sums
// over many channels are made tap by tap, which rounds less.
template <typename Scheme, typename T>
void multiply_block(
    const Shape& s, const Scheme& scheme, int64_t block, Transformed<Scheme, T>& input,
    const T* factors, Transformed<Scheme, T>& output) {
  constexpr int kRowTaps = Scheme::kRowTaps;
  const int64_t rows = scheme.outputs(block), matrix = s.in_channels * s.out_channels;
  const int64_t tap_distance = scheme.step * s.in_channels;
  for (int64_t p = 0; p < Scheme::kProducts; ++p, factors += kRowTaps * matrix) {
    const T* from = input.matrix(p);
    T* to = output.matrix(p);
    if (s.in_channels <= kFewChannels) {
      multiply<kRowTaps>(
          rows, s.in_channels, s.out_channels, from, tap_distance, factors, to, false);
      continue;
    }
    for (int64_t tap = 0; tap < kRowTaps; ++tap) {
      multiply<1>(
          rows, s.in_channels, s.out_channels, from + tap * tap_distance, 0, factors + tap * matrix,
          to, tap > 0);
    }
  }
}

template <typename Scheme, Activation kBefore, Activation kAfter, typename T>
void convolve(const Shape& s, const ActivatedGradient<T>& x, const T* weight, const T* bias, T* y) {
  constexpr int kTaps = Scheme::kTaps;
  const Scheme scheme(s);
  const AlignedVector<T> zeros(s.in_channels);
  AlignedVector<T> factors(Scheme::kProducts * Scheme::kRowTaps * s.in_channels * s.out_channels);
  transform_weights<Scheme, kTaps, Scheme::kSide>(
      s, winograd::transform_weight<Scheme::kPairs, kTaps, at::vec::Vectorized<T>>, weight,
      factors.data());
  at::parallel_for(0, scheme.blocks, 1, [&](int64_t begin, int64_t end) {
    Transformed<Scheme, T> input(scheme.inputs(0), s.in_channels);
    Transformed<Scheme, T> output(scheme.outputs(0), s.out_channels);
    AlignedVector<T> nowhere(s.out_channels);
    for (int64_t block = begin; block < end; ++block) {
      transform_images<kBefore>(s, scheme, block, x, zeros.data(), input);
      multiply_block(s, scheme, block, input, factors.data(), output);
      write_outputs<kAfter>(s, scheme, block, bias, y, nowhere.data(), output);
    }
  });
}

// In a fixed order: to[i] = sum_task partial[task, i]
template <typename T>
void add_tasks(int64_t tasks, const AlignedVector<T>& partial, int64_t size, T* to) {
  at::parallel_for(0, size, 1 << 14, [&](int64_t begin, int64_t end) {
    std::copy(partial.data() + begin, partial.data() + end, to + begin);
    for (int64_t task = 1; task < tasks; ++task) {
      for (int64_t i = begin; i < end; ++i) {
        to[i] += partial[task * size + i];
      }
    }
  });
}

template <typename Scheme, Activation kActivation, typename T>
void weight_gradient(
    const Shape& s, const T* x, const ActivatedGradient<T>& from, T* grad_weight, T* grad_bias) {
  constexpr int kTaps = Scheme::kTaps, kRowTaps = Scheme::kRowTaps;
  const Scheme scheme(s);
  const int64_t tasks = std::min(Scheme::kMaxTasks, scheme.blocks);
  const int64_t matrix = s.in_channels * s.out_channels;
  const int64_t size = Scheme::kProducts * kRowTaps * matrix;
  const AlignedVector<T> zeros(std::max(s.in_channels, s.out_channels));
  AlignedVector<T> sums(tasks * size), bias_sums(tasks * s.out_channels);
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    Transformed<Scheme, T> input(scheme.inputs(0), s.in_channels);
    Transformed<Scheme, T> gradient(scheme.outputs(0), s.out_channels);
    for (int64_t task = begin; task < end; ++task) {
      for (int64_t block = task * scheme.blocks / tasks; block < (task + 1) * scheme.blocks / tasks;
           ++block) {
        transform_images<Activation::kNone>(
            s, scheme, block, ActivatedGradient<T>{x, nullptr}, zeros.data(), input);
        transform_gradients<kActivation>(
            s, scheme, block, from, zeros.data(), bias_sums.data() + task * s.out_channels,
            gradient);
        for (int64_t p = 0; p < Scheme::kProducts * kRowTaps; ++p) {
          add_transposed(
              scheme.outputs(block), s.in_channels, s.out_channels,
              input.matrix(p / kRowTaps) + p % kRowTaps * scheme.step * s.in_channels,
              gradient.matrix(p / kRowTaps), sums.data() + task * size + p * matrix);
        }
      }
    }
  });
  AlignedVector<T> factors(size);
  add_tasks(tasks, sums, size, factors.data());
  add_tasks(tasks, bias_sums, s.out_channels, grad_bias);
  transform_weights<Scheme, Scheme::kSide, kTaps>(
      s, winograd::transform_weight_gradient<Scheme::kPairs, kTaps, at::vec::Vectorized<T>>,
      factors.data(), grad_weight);
}

// Calls function<Scheme, kActivation>().
template <typename Function>
void choose(const Shape& s, const Function& function) {
  const auto with = [&]<Activation kActivation>() {
    s.kernel == 3 ? function.template operator()<Square, kActivation>()
                  : function.template operator()<Lines, kActivation>();
  };
  switch (s.activation) {
    case Activation::kNone: with.template operator()<Activation::kNone>(); break;
    case Activation::kRelu: with.template operator()<Activation::kRelu>(); break;
    case Activation::kElu: with.template operator()<Activation::kElu>(); break;
  }
}

}  // namespace

template <typename T>
void convolution_cpu(const Shape& s, const T* x, const T* weight, const T* bias, T* y) {
  choose(s, [&]<typename Scheme, Activation kActivation>() {
    convolve<Scheme, Activation::kNone, kActivation>(
        s, ActivatedGradient<T>{x, nullptr}, weight, bias, y);
  });
}

template <typename T>
void convolution_input_gradient_cpu(
    const Shape& s, const ActivatedGradient<T>& from, const T* weight, T* grad_x) {
  choose(s, [&]<typename Scheme, Activation kActivation>() {
    const T* no_bias = nullptr;
    convolve<Scheme, kActivation, Activation::kNone>(s, from, weight, no_bias, grad_x);
  });
}

template <typename T>
void convolution_weight_gradient_cpu(
    const Shape& s, const T* x, const ActivatedGradient<T>& from, T* grad_weight, T* grad_bias) {
  choose(s, [&]<typename Scheme, Activation kActivation>() {
    weight_gradient<Scheme, kActivation>(s, x, from, grad_weight, grad_bias);
  });
}

#define INSTANTIATE(T)                                                              \
  template void convolution_cpu<T>(const Shape&, const T*, const T*, const T*, T*); \
  template void convolution_input_gradient_cpu<T>(                                  \
      const Shape&, const ActivatedGradient<T>&, const T*, T*);                     \
  template void convolution_weight_gradient_cpu<T>(                                 \
      const Shape&, const T*, const ActivatedGradient<T>&, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace emorl::convolution
