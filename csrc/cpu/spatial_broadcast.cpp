// Spatial broadcast on the CPU, in tiles of some rows of all slots' images: a tile of the positions
// is read from memory once and stays in the cache, as does a tile of their gradient. Sums over
// pixels go to one partial result per task, added in a second pass in a fixed order.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/spatial_broadcast_run.h"
#include "spatial_broadcast.h"

namespace emorl::spatial_broadcast {
namespace {

// Bytes; an output above is gone from the caches before it is read.
constexpr int64_t kCache = 1 << 24;

// The rows of all planes of an image, divided among tasks and within them into tiles.
struct Division {
  int64_t rows, row, tile, tasks, grain;  // row: elements in one row

  explicit Division(const Shape& s) : rows(s.planes() * s.height), row(s.width * s.inner()) {
    constexpr int64_t kTile = 1 << 13, kTasksPerThread = 4, kWorthThreads = 1 << 15;
    tile = std::max<int64_t>(1, kTile / row);
    // The partial sums of a task must be few beside the elements that it adds.
    const int64_t most = std::min(rows, s.pixels() / (8 * s.classes()));
    tasks = std::max<int64_t>(1, std::min<int64_t>(kTasksPerThread * at::get_num_threads(), most));
    grain = s.slots * rows * row < kWorthThreads ? tasks : 1;
  }
  // function(task, first row, row after the last) for every tile
  template <typename Function>
  void for_each_tile(int64_t task, Function function) const {
    const int64_t last = (task + 1) * rows / tasks;
    for (int64_t first = task * rows / tasks; first < last; first += tile) {
      function(first, std::min(first + tile, last));
    }
  }
};

// function(class, first column, columns) for each part of a row that belongs to one border class
template <typename Function>
void for_each_run(const Shape& s, int64_t row, Function function) {
  if (!s.border_classes) {
    function(0, 0, s.width);
    return;
  }
  const int64_t h = row % s.height, row_class = h == 0 ? 0 : h == s.height - 1 ? 2 : 1;
  function(3 * row_class, 0, 1);
  if (s.width > 2) {
    function(3 * row_class + 1, 1, s.width - 2);
  }
  function(3 * row_class + 2, s.width - 1, 1);
}

template <typename T, Activation kActivation, bool kStream>
void forward(const Shape& s, const T* slot, const T* position, T* output) {
  const Division d(s);
  const int64_t inner = s.inner();
  const auto add_rows = [&](int64_t m, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      // channels-last rows need all channels, others their plane's
      const T* from = slot + m * s.classes() * s.channels + (inner == 1 ? row / s.height : 0);
      for_each_run(s, row, [&](int64_t of_class, int64_t column, int64_t columns) {
        const int64_t offset = row * d.row + column * inner;
        add_run<T, kActivation, kStream>(
            from + of_class * s.channels, position + offset, columns, inner,
            output + m * d.rows * d.row + offset);
      });
    }
  };
  at::parallel_for(0, d.tasks, d.grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      d.for_each_tile(task, [&](int64_t first, int64_t last) {
        for (int64_t m = 0; m < s.slots; ++m) {
          add_rows(m, first, last);
        }
      });
    }
    if (kStream) {
      finish_streams();
    }
  });
}

// One task of the backward pass: its rows of grad_position, and its share of grad_slot in
// partial [slots, classes, channels].
template <typename T, Activation kActivation>
void backward_task(
    const Shape& s, const Gradients<T>& grad, const Division& d, int64_t task, double* partial) {
  const int64_t inner = s.inner();
  std::vector<Wide<T>> position_sums(std::min(d.tile, d.rows) * d.row), slot_sums(inner);
  std::vector<double> position_totals(position_sums.size());
  const auto add_to_totals = [&](int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      position_totals[i] += position_sums[i];
      position_sums[i] = 0;
    }
  };
  const auto add_row = [&](int64_t m, int64_t row, Wide<T>* to) {
    double* sums = partial + m * s.classes() * s.channels + (inner == 1 ? row / s.height : 0);
    for_each_run(s, row, [&](int64_t of_class, int64_t column, int64_t columns) {
      const int64_t offset = (m * d.rows + row) * d.row + column * inner;
      std::fill(slot_sums.begin(), slot_sums.end(), Wide<T>(0));
      add_run_backward<T, kActivation>(
          grad.grad_output + offset, grad.output + offset, columns, inner, slot_sums.data(),
          to + column * inner);
      for (int64_t c = 0; c < inner; ++c) {
        sums[of_class * s.channels + c] += slot_sums[c];
      }
    });
  };
  d.for_each_tile(task, [&](int64_t first, int64_t last) {
    const int64_t count = (last - first) * d.row;
    std::fill(position_totals.begin(), position_totals.end(), 0.0);
    for (int64_t m = 0; m < s.slots; ++m) {
      for (int64_t row = first; row < last; ++row) {
        add_row(m, row, position_sums.data() + (row - first) * d.row);
      }
      if ((m + 1) % kMostInARow == 0 || m + 1 == s.slots) {
        add_to_totals(count);
      }
    }
    for (int64_t i = 0; i < count && grad.grad_position != nullptr; ++i) {
      grad.grad_position[first * d.row + i] =
          static_cast<T>(static_cast<Wide<T>>(position_totals[i]));
    }
  });
}

template <typename T, Activation kActivation>
void backward(const Shape& s, const Gradients<T>& grad) {
  const Division d(s);
  const int64_t width = s.slots * s.classes() * s.channels;
  std::vector<double> partials(d.tasks * width);
  at::parallel_for(0, d.tasks, d.grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      backward_task<T, kActivation>(s, grad, d, task, partials.data() + task * width);
    }
  });
  if (grad.grad_slot == nullptr) {
    return;
  }
  for (int64_t i = 0; i < width; ++i) {
    double sum = 0;
    for (int64_t task = 0; task < d.tasks; ++task) {
      sum += partials[task * width + i];
    }
    grad.grad_slot[i] = static_cast<T>(static_cast<Wide<T>>(sum));
  }
}

}  // namespace

template <typename T>
void spatial_broadcast_cpu(const Shape& s, const T* slot, const T* position, T* output) {
  with_constant(s.activation, [&](auto activation) {
    if constexpr (kIsWide<T>) {
      if (is_streamed(output, s.inner(), s.slots * s.pixels(), kCache)) {
        return forward<T, activation(), true>(s, slot, position, output);
      }
    }
    forward<T, activation(), false>(s, slot, position, output);
  });
}

template <typename T>
void spatial_broadcast_backward_cpu(const Shape& s, const Gradients<T>& grad) {
  with_constant(s.activation, [&](auto activation) { backward<T, activation()>(s, grad); });
}

#define INSTANTIATE(T)                                                          \
  template void spatial_broadcast_cpu<T>(const Shape&, const T*, const T*, T*); \
  template void spatial_broadcast_backward_cpu<T>(const Shape&, const Gradients<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(at::BFloat16)
INSTANTIATE(at::Half)

}  // namespace emorl::spatial_broadcast
