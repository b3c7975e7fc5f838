#include "client/attnctl/comparison.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/field_error.h"

namespace attnd::attnctl {
namespace {

double Difference(double got, double expected) {
  if (std::isnan(got) && std::isnan(expected)) return 0;
  if (got == expected) return 0;  // infinities, too
  const double difference = std::abs(got - expected);
  return std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                : difference;
}

std::vector<int64_t> IndexOf(size_t element,
                             const std::vector<int64_t>& shape) {
  std::vector<int64_t> index(shape.size());
  auto rest = static_cast<int64_t>(element);
  for (size_t axis = shape.size(); axis-- > 0;) {
    index[axis] = rest % shape[axis];
    rest /= shape[axis];
  }
  return index;
}

}  // namespace

absl::StatusOr<Comparison> Compare(std::span<const float> got,
                                   const std::vector<int64_t>& got_shape,
                                   std::span<const double> expected,
                                   const std::vector<int64_t>& expected_shape) {
  if (got_shape != expected_shape) {
    return absl::FailedPreconditionError(
        absl::StrCat("expected shape ", ShapeText(expected_shape), ", got ",
                     ShapeText(got_shape)));
  }
  Comparison comparison;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = Difference(got[i], expected[i]);
    if (difference > comparison.worst_error) {
      comparison.worst_error = difference;
      comparison.worst_index = IndexOf(i, got_shape);
    }
  }
  return comparison;
}

}  // namespace attnd::attnctl
