#include "cost/problem_family.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/checked_math.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "core/kernel_plan.h"

namespace attnd {
namespace {

// The axes of bias and mask, counted from the right.
constexpr size_t kKvAxis = 0;
constexpr size_t kQAxis = 1;
constexpr size_t kBatchAxis = 3;

// Returns the extent of an axis that is counted from the right, or null if the
// tensor does not have it or if it is 1, so that it is broadcast.
template <typename Shape>
auto* FullAxis(Shape& shape, size_t from_right) {
  const size_t rank = shape.size();
  auto* const extent =
      from_right < rank ? &shape[rank - 1 - from_right] : nullptr;
  return extent != nullptr && *extent != 1 ? extent : nullptr;
}

// The lists that have a number for each batch entry.
std::optional<absl::string_view> ListOfEntries(
    const AttentionOptions& options) {
  if (!options.query_lengths.empty()) return "query_lengths";
  if (!options.key_lengths.empty()) return "key_lengths";
  if (options.query_offsets.size() > 1) return "query_offsets";
  if (!options.cu_seqlens_q.empty()) return "cu_seqlens_q";
  if (!options.cu_seqlens_k.empty()) return "cu_seqlens_k";
  return std::nullopt;
}

}  // namespace

absl::StatusOr<ProblemFamily> ProblemFamily::Of(const CostQuery& query,
                                                EstimateGoal goal) {
  ATTND_RETURN_IF_ERROR(query.CheckSizes());
  ProblemFamily family(query, goal);
  ATTND_RETURN_IF_ERROR(family.CheckGoal());
  CostQuery& member = family.query_;
  switch (goal) {
    case EstimateGoal::kMaxSeqLen:
      family.q_axis_follows_ = member.q_len.value == 0;
      family.kv_axis_follows_ = member.kv_len.value == 0;
      member.seq_len.value = 1;
      break;
    case EstimateGoal::kMaxBatch:
      family.batch_axis_follows_ = true;
      member.batch.value = 1;
      break;
    case EstimateGoal::kMaxConcurrency:
    case EstimateGoal::kEstimate:
      member.concurrency.value = 1;
      break;
  }
  ATTND_RETURN_IF_ERROR(family.CheckAxes());
  ATTND_RETURN_IF_ERROR(member.SetDefaults());
  family.SetSize(1);
  ATTND_ASSIGN_OR_RETURN(const AttentionProblem problem, ProblemOf(member));
  if (family.q_axis_follows_) family.FindSizesThatMayTakeLess(problem);
  return family;
}

ProblemFamily ProblemFamily::WithLongerSequences(const CostQuery& query) {
  ProblemFamily family(query, EstimateGoal::kEstimate);
  family.q_axis_follows_ = true;
  family.kv_axis_follows_ = true;
  family.given_q_len_ = query.q_len.value;
  family.given_kv_len_ = query.kv_len.value;
  return family;
}

absl::StatusOr<QueryCost> ProblemFamily::CostAt(int64_t size) {
  SetSize(size);
  return CostOf(query_);
}

// Checks that no size and no option contradicts the goal.
absl::Status ProblemFamily::CheckGoal() const {
  const AttentionOptions& options = query_.options;
  if (goal_ == EstimateGoal::kMaxSeqLen) {
    if (query_.q_len.value != 0 && query_.kv_len.value != 0) {
      return FieldError(query_.kv_len.name,
                        "0, because q_len is set and the goal is the largest "
                        "seq_len, which one of them must follow",
                        absl::StrCat(query_.kv_len.value));
    }
    for (const auto& [list, name] :
         {std::pair(&options.cu_seqlens_q, "cu_seqlens_q"),
          std::pair(&options.cu_seqlens_k, "cu_seqlens_k")}) {
      if (list->empty()) continue;
      return FieldError(absl::StrCat("options.", name),
                        "no offsets, because they fix the length of all "
                        "sequences and the goal is the largest seq_len",
                        absl::StrCat(list->size(), " numbers"));
    }
  }
  if (goal_ == EstimateGoal::kMaxBatch) {
    if (const auto list = ListOfEntries(options)) {
      return FieldError(absl::StrCat("options.", *list),
                        "nothing, because it has a number for each batch entry "
                        "and the goal is the largest batch",
                        "a list");
    }
  }
  return absl::OkStatus();
}

// Checks the axes of bias and mask that follow the size, because the size
// replaces what the caller gave.
absl::Status ProblemFamily::CheckAxes() const {
  const std::pair<const std::optional<TensorSpec>&, absl::string_view>
      tensors[] = {{options_.bias, "bias"}, {options_.mask, "mask"}};
  const std::pair<bool, size_t> axes[] = {{kv_axis_follows_, kKvAxis},
                                          {q_axis_follows_, kQAxis},
                                          {batch_axis_follows_, kBatchAxis}};
  for (const auto& [tensor, name] : tensors) {
    if (!tensor) continue;
    for (const auto& [follows, axis] : axes) {
      const int64_t* const extent = FullAxis(tensor->shape, axis);
      if (!follows || extent == nullptr || *extent > 0) continue;
      return FieldError(
          absl::StrCat("options.", name, ".shape[",
                       tensor->shape.size() - 1 - axis, "]"),
          "1, or a number > 1 for an axis that is as long as the size that is "
          "searched",
          absl::StrCat(*extent));
    }
  }
  return absl::OkStatus();
}

// All that a call holds grows with every size, apart from the workspace, which
// may shrink when the rows of an entry reach one of RowsThatMayTakeLess. Only
// seq_len changes the rows. Entries that are longer than their query_lengths no
// longer grow, and all others have the same number of rows. So these are the
// only sizes.
void ProblemFamily::FindSizesThatMayTakeLess(const AttentionProblem& problem) {
  const AttentionParams& params = problem.params();
  auto& sizes = sizes_that_may_take_less_;
  for (const int64_t rows : RowsThatMayTakeLess(params, query_.machine)) {
    const int64_t size =
        CeilDiv(rows, std::max<int64_t>(1, params.HeadsPerGroup()));
    if (size > (sizes.empty() ? 1 : sizes.back())) sizes.push_back(size);
  }
}

// Returns the length that a member of this size has instead of `length`.
int64_t ProblemFamily::LengthAt(int64_t size, int64_t length) const {
  if (goal_ == EstimateGoal::kMaxSeqLen) return std::min(length, size);
  const int64_t longest = std::max(given_q_len_, given_kv_len_);
  int64_t product = 0;
  if (!__builtin_mul_overflow(length, size, &product)) return product / longest;
  return static_cast<int64_t>(absl::int128(length) * size / longest);
}

void ProblemFamily::SetSize(int64_t size) {
  const bool in_proportion = goal_ == EstimateGoal::kEstimate;
  AttentionOptions& options = query_.options;
  const auto set_lengths = [&](const std::vector<int64_t>& given,
                               std::vector<int64_t>& lengths) {
    std::transform(given.begin(), given.end(), lengths.begin(),
                   [&](int64_t length) { return LengthAt(size, length); });
  };
  const auto set_axis = [&](size_t axis, int64_t extent) {
    for (auto member : {&AttentionOptions::bias, &AttentionOptions::mask}) {
      // The given shape says which axes follow: in a member of size 1, all
      // axes are 1.
      if (!(options_.*member) ||
          FullAxis((options_.*member)->shape, axis) == nullptr) {
        continue;
      }
      std::vector<int64_t>& shape = (options.*member)->shape;
      shape[shape.size() - 1 - axis] = extent;
    }
  };
  if (q_axis_follows_) {
    query_.q_len.value = in_proportion ? LengthAt(size, given_q_len_) : size;
    set_axis(kQAxis, query_.q_len.value);
    set_lengths(options_.query_lengths, options.query_lengths);
    set_lengths(options_.cu_seqlens_q, options.cu_seqlens_q);
  }
  if (kv_axis_follows_) {
    query_.kv_len.value = in_proportion ? LengthAt(size, given_kv_len_) : size;
    set_axis(kKvAxis, query_.kv_len.value);
    set_lengths(options_.key_lengths, options.key_lengths);
    set_lengths(options_.cu_seqlens_k, options.cu_seqlens_k);
  }
  if (batch_axis_follows_) {
    query_.batch.value = size;
    set_axis(kBatchAxis, size);
  }
  if (goal_ == EstimateGoal::kMaxConcurrency) query_.concurrency.value = size;
}

}  // namespace attnd
