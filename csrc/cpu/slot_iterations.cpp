// The pointwise part of the GRU on the CPU, each row read and written once.
#include "slot_iterations.h"

#include <algorithm>

#include "cpu/vector.h"

namespace emorl::slot_iterations {
namespace {

// function(row, column, count) for every vector of the rows; the last of a row may be shorter.
template <typename T, typename Function>
void for_each_vector(int64_t rows, int64_t width, Function function) {
  constexpr int64_t kWorthAThread = 1 << 14;
  const int64_t grain = kWorthAThread / std::max<int64_t>(1, width) + 1;
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t column = 0;
      for (; column + kLanes<T> <= width; column += kLanes<T>) {
        function(row, column, kLanes<T>);
      }
      if (column < width) {
        function(row, column, width - column);
      }
    }
  });
}

template <typename T>
at::vec::Vectorized<T> load(const T* from, int64_t count) {
  using Vec = at::vec::Vectorized<T>;
  return count == kLanes<T> ? Vec::loadu(from) : Vec::loadu(from, count);
}

}  // namespace

template <typename T>
void gru_cpu(const Cell<T>& c) {
  using Vec = at::vec::Vectorized<T>;
  const Vec one(T(1));
  const int64_t w = c.width;
  for_each_vector<T>(c.rows, w, [&](int64_t row, int64_t column, int64_t count) {
    const auto product = [&](const T* of, const T* bias, int64_t part) {
      return load(of + (row * 3 + part) * w + column, count) +
          load(bias + part * w + column, count);
    };
    const auto of_both = [&](int64_t part) {
      return product(c.of_update, c.bias_ih, part) + product(c.of_state, c.bias_hh, part);
    };
    // reset = 1 / (1 + exp(-of_both(0))), keep = 1 / (1 + exp(-of_both(1)))
    const Vec reset = one / (one + of_both(0).neg().exp());
    const Vec keep = one / (one + of_both(1).neg().exp());
    // content = tanh(of_update + reset * of_state), moved = content + keep * (state - content)
    const Vec of_state = product(c.of_state, c.bias_hh, 2);
    const Vec content = at::vec::fmadd(reset, of_state, product(c.of_update, c.bias_ih, 2)).tanh();
    const Vec state = load(c.state + row * w + column, count);
    at::vec::fmadd(keep, state - content, content).store(c.moved + row * w + column, count);
    T* gate = c.gates + row * 4 * w + column;
    reset.store(gate, count);
    keep.store(gate + w, count);
    content.store(gate + 2 * w, count);
    of_state.store(gate + 3 * w, count);
  });
}

template <typename T>
void gru_backward_cpu(const CellGradient<T>& c) {
  using Vec = at::vec::Vectorized<T>;
  const Vec one(T(1));
  const int64_t w = c.width;
  for_each_vector<T>(c.rows, w, [&](int64_t row, int64_t column, int64_t count) {
    const T* gate = c.gates + row * 4 * w + column;
    const Vec reset = load(gate, count), keep = load(gate + w, count);
    const Vec content = load(gate + 2 * w, count), of_state = load(gate + 3 * w, count);
    const Vec moved = load(c.grad_moved + row * w + column, count);
    const Vec state = load(c.state + row * w + column, count);
    // to_content = moved * (1 - keep) * (1 - content^2), before the tanh
    const Vec to_content = moved * (one - keep) * (one - content * content);
    const Vec to_reset = to_content * of_state * reset * (one - reset);
    const Vec to_keep = moved * (state - content) * keep * (one - keep);
    const auto write = [&](T* to, const Vec& content_part) {
      T* target = to + row * 3 * w + column;
      to_reset.store(target, count);
      to_keep.store(target + w, count);
      content_part.store(target + 2 * w, count);
    };
    write(c.of_update, to_content);
    write(c.of_state, to_content * reset);
    // grad_state += moved * keep
    T* to_state = c.grad_state + row * w + column;
    at::vec::fmadd(moved, keep, load(to_state, count)).store(to_state, count);
  });
}

#define INSTANTIATE(T)                      \
  template void gru_cpu<T>(const Cell<T>&); \
  template void gru_backward_cpu<T>(const CellGradient<T>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace emorl::slot_iterations
