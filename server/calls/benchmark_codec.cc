#include "server/calls/benchmark_codec.h"

#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "server/codec/options_codec.h"
#include "wire/reasons.h"

namespace attnd::server {
namespace {

constexpr int64_t kDefaultDimensions = 128;
constexpr int64_t kDefaultRepetitions = 5;
constexpr int64_t kMaxRepetitions = 1000;
// One request may ask for as much work as this many heads of the longest
// problem take, with the default dimensions and repetitions.
constexpr int64_t kMaxFullHeads = 32;

absl::Status CheckRange(absl::string_view field, int64_t value, int64_t lowest,
                        int64_t highest) {
  if (value >= lowest && value <= highest) return absl::OkStatus();
  return FieldError(std::string(field), absl::StrCat(lowest, " to ", highest),
                    absl::StrCat(value));
}

absl::Status CheckFields(const v1::BenchmarkRequest& in,
                         const ServiceContext& context) {
  absl::Status status;
  status.Update(CheckRange("num_vectors", in.num_vectors(), 1,
                           context.max_benchmark_vectors));
  status.Update(CheckRange("dimensions", in.dimensions(), 0,
                           AttentionProblem::kMaxHeadDim));
  status.Update(CheckRange("num_heads", in.num_heads(), 0,
                           std::numeric_limits<int32_t>::max()));
  status.Update(
      CheckRange("threads", in.threads(), 0, context.engine.threads()));
  status.Update(
      CheckRange("repetitions", in.repetitions(), 0, kMaxRepetitions));
  if (in.block_size() < 0) {
    status.Update(FieldError("block_size", "a number >= 0",
                             absl::StrCat(in.block_size())));
  }
  return status;
}

absl::Status CheckWork(double pairs, double dimensions, int64_t repetitions,
                       const ServiceContext& context) {
  const auto longest = static_cast<double>(context.max_benchmark_vectors);
  const double allowed = longest * longest * kMaxFullHeads *
                         kDefaultDimensions * kDefaultRepetitions;
  const double asked = pairs * dimensions * static_cast<double>(repetitions);
  if (asked <= allowed) return absl::OkStatus();
  return WithReason(
      absl::ResourceExhaustedError(absl::StrCat(
          "num_vectors^2 * num_heads * dimensions * repetitions: expected at "
          "most ",
          allowed, ", got ", asked,
          ": reduce one of them, or raise --max-benchmark-vectors")),
      kWorkLimit);
}

}  // namespace

absl::StatusOr<BenchmarkSpec> DecodeBenchmark(const v1::BenchmarkRequest& in,
                                              const ServiceContext& context) {
  ATTND_RETURN_IF_ERROR(CheckFields(in, context));
  ATTND_ASSIGN_OR_RETURN(const DataType dtype, DecodeProblemType(in.dtype()));
  const int64_t vectors = in.num_vectors();
  const int64_t heads = in.num_heads() > 0 ? in.num_heads() : 1;
  const int64_t dimensions =
      in.dimensions() > 0 ? in.dimensions() : kDefaultDimensions;
  const int64_t repetitions =
      in.repetitions() > 0 ? in.repetitions() : kDefaultRepetitions;
  const double pairs = static_cast<double>(vectors) *
                       static_cast<double>(vectors) *
                       static_cast<double>(heads);
  ATTND_RETURN_IF_ERROR(
      CheckWork(pairs, static_cast<double>(dimensions), repetitions, context));
  const auto make_problem = [&](DataType type) {
    const TensorSpec tensor{.dtype = type,
                            .shape = {1, heads, vectors, dimensions}};
    return AttentionProblem::Create(tensor, tensor, tensor,
                                    {.block_size = in.block_size()});
  };
  const absl::StatusOr<AttentionProblem> problem = make_problem(dtype);
  if (!problem.ok()) return WithField(problem.status(), "num_vectors");
  const absl::StatusOr<AttentionProblem> naive_problem =
      make_problem(DataType::kF32);
  if (!naive_problem.ok()) {
    return WithField(naive_problem.status(), "num_vectors");
  }
  return BenchmarkSpec{
      .problem = *problem,
      .naive_problem = *naive_problem,
      .threads = in.threads() > 0 ? in.threads() : context.engine.threads(),
      .repetitions = repetitions};
}

}  // namespace attnd::server
