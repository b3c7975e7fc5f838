#include "core/merge.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

namespace attnd {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// How many columns of the output are summed at a time. The sums are on the
// stack.
constexpr int64_t kColumns = 128;

}  // namespace

void MergePartials(std::span<const PartialResult> partials, int64_t rows,
                   int64_t v_head_dim, float* output, float* lse) {
  for (int64_t row = 0; row < rows; ++row) {
    // The largest lse is subtracted from all of them so that no exp overflows.
    // A NaN is never the largest, but it makes the sum NaN.
    double largest = -kInfinity;
    bool nothing = true;
    bool has_nan = false;
    for (const PartialResult& partial : partials) {
      const double part{partial.lse[row]};
      if (part > largest) largest = part;
      nothing &= part == -kInfinity;
      has_nan |= std::isnan(part);
    }
    float* const out = output + row * v_head_dim;
    if (nothing) {
      std::fill_n(out, v_head_dim, 0.0F);
      lse[row] = -std::numeric_limits<float>::infinity();
      continue;
    }
    double sum = 0;
    for (const PartialResult& partial : partials) {
      const double part{partial.lse[row]};
      if (part != -kInfinity) sum += std::exp(part - largest);
    }
    for (int64_t begin = 0; begin < v_head_dim; begin += kColumns) {
      const int64_t columns = std::min(kColumns, v_head_dim - begin);
      std::array<double, kColumns> sums{};
      for (const PartialResult& partial : partials) {
        const double part{partial.lse[row]};
        if (part == -kInfinity) continue;
        const double weight = std::exp(part - largest);
        const float* const from = partial.output + row * v_head_dim + begin;
        for (int64_t d = 0; d < columns; ++d) {
          sums[static_cast<size_t>(d)] += weight * double{from[d]};
        }
      }
      for (int64_t d = 0; d < columns; ++d) {
        out[begin + d] = static_cast<float>(sums[static_cast<size_t>(d)] / sum);
      }
    }
    // With an lse of +inf, the formula says ln(inf) = inf, although inf - inf
    // made the sum NaN.
    lse[row] = static_cast<float>(
        largest == kInfinity && !has_nan ? kInfinity : largest + std::log(sum));
  }
}

}  // namespace attnd
