#include "client/attnctl/offline_estimate.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "core/attention_problem.h"
#include "core/checked_math.h"
#include "core/field_error.h"
#include "core/machine.h"
#include "core/memory_estimator.h"
#include "core/options_footprint.h"

namespace attnd::attnctl {
namespace {

constexpr int64_t kDefaultDimensions = 128;

int64_t Or(int64_t value, int64_t fallback) {
  return value != 0 ? value : fallback;
}

Causal CoreCausal(client::Causal causal) {
  switch (causal) {
    case client::Causal::kNone:
      return Causal::kNone;
    case client::Causal::kTopLeft:
      return Causal::kTopLeft;
    case client::Causal::kBottomRight:
      return Causal::kBottomRight;
  }
  return Causal::kNone;
}

Precision CorePrecision(client::Precision precision) {
  switch (precision) {
    case client::Precision::kAuto:
      return Precision::kAuto;
    case client::Precision::kF32:
      return Precision::kF32;
    case client::Precision::kBF16:
      return Precision::kBF16;
  }
  return Precision::kAuto;
}

// Of a float tensor: no flag gives another type.
DataType CoreType(client::DataType type) {
  switch (type) {
    case client::DataType::kF16:
      return DataType::kF16;
    case client::DataType::kBF16:
      return DataType::kBF16;
    default:
      return DataType::kF32;
  }
}

AttentionOptions CoreOptions(const client::MemoryEstimateOptions& options) {
  const client::AttentionOptions& in = options.attention;
  AttentionOptions out{.scale = in.scale,
                       .temperature = in.temperature,
                       .block_size = in.block_size,
                       .layout = in.layout == client::Layout::kBshd
                                     ? Layout::kBshd
                                     : Layout::kBhsd,
                       .causal = CoreCausal(in.causal),
                       .query_offsets = in.query_offsets,
                       .window_left = in.window_left,
                       .window_right = in.window_right,
                       .logits_soft_cap = in.logits_soft_cap,
                       .alibi_slopes = in.alibi_slopes,
                       .sink_logits = in.sink_logits,
                       .query_lengths = in.query_lengths,
                       .key_lengths = in.key_lengths,
                       .cu_seqlens_q = in.cu_seqlens_q,
                       .cu_seqlens_k = in.cu_seqlens_k,
                       .return_lse = options.return_lse,
                       .precision = CorePrecision(in.precision)};
  if (in.bias) {
    out.bias = TensorSpec{.dtype = CoreType(in.bias->data.type()),
                          .shape = in.bias->shape};
  }
  if (in.mask) out.mask_shape = in.mask->shape;
  if (options.output_dtype) out.output_dtype = CoreType(*options.output_dtype);
  return out;
}

// The core names the axes of tensors and fields; whoever typed the flags knows
// flags.
absl::Status NameFlag(const absl::Status& status, bool ragged, bool bshd) {
  const auto field = FieldOf(status);
  if (!field) return status;
  if (absl::StartsWith(*field, "options.")) {
    // As the field is named, but for the shapes of tensors that have no file.
    const std::string name = field->substr(std::string_view("options.").size());
    return WithField(
        status,
        absl::StrCat("--", absl::StrReplaceAll(
                               name, {{"_", "-"}, {".shape", "-shape"}})));
  }
  std::vector<std::string> query = {"--batch", "--num-q-heads", "--q-len",
                                    "--head-dim"};
  std::vector<std::string> key = {"--batch", "--num-kv-heads", "--kv-len",
                                  "--head-dim"};
  for (auto* axes : {&query, &key}) {
    if (bshd) std::swap((*axes)[1], (*axes)[2]);
    if (ragged) axes->erase(axes->begin());
  }
  const std::string_view tensor =
      std::string_view(*field).substr(0, field->find('.'));
  const size_t at = field->find('[');
  if (at == std::string::npos) {
    return WithField(status, tensor == "query" ? "--q-len" : "--kv-len");
  }
  const auto axis = static_cast<size_t>((*field)[at + 1] - '0');
  if (tensor == "value" && axis + 1 == key.size()) {
    return WithField(status, "--v-head-dim");
  }
  return WithField(status, (tensor == "query" ? query : key).at(axis));
}

absl::StatusOr<RequestFootprint> FootprintBy(client::Transport transport,
                                             const MemoryEstimate& estimate,
                                             const AttentionProblem& problem) {
  switch (transport) {
    case client::Transport::kInline:
      return InlineFootprint(estimate);
    case client::Transport::kStream:
      return StreamFootprint(estimate);
    case client::Transport::kSharedMemory:
      return SharedMemoryFootprint(estimate, problem.mask_bytes());
  }
  return InlineFootprint(estimate);
}

absl::Status AtLeastOne(const char* flag, int64_t value) {
  if (value >= 1) return absl::OkStatus();
  return FieldError(flag, "a number >= 1", absl::StrCat(value));
}

}  // namespace

absl::StatusOr<client::MemoryEstimate> EstimateOffline(
    const client::MemoryEstimateOptions& options) {
  const int64_t q_len = Or(options.q_len, options.seq_len);
  const int64_t kv_len = Or(options.kv_len, options.seq_len);
  if (q_len == 0 || kv_len == 0) {
    return FieldError("--seq-len", "a length, or --q-len and --kv-len", "0");
  }
  const int64_t dimensions = Or(options.dimensions, kDefaultDimensions);
  const int64_t head_dim = Or(options.head_dim, dimensions);
  const int64_t v_head_dim = Or(options.v_head_dim, head_dim);
  const int64_t batch = Or(options.batch, 1);
  const int64_t num_q_heads = Or(options.num_q_heads, 1);
  const int64_t num_kv_heads = Or(options.num_kv_heads, num_q_heads);
  const int64_t threads = Or(options.threads, AvailableThreads());
  const int64_t concurrency = Or(options.concurrency, 1);
  for (const absl::Status& status :
       {AtLeastOne("--threads", threads),
        AtLeastOne("--concurrency", concurrency)}) {
    if (!status.ok()) return status;
  }

  const AttentionOptions attention = CoreOptions(options);
  const bool ragged = !attention.cu_seqlens_q.empty();
  const bool bshd = attention.layout == Layout::kBshd;
  if (ragged && batch != 1) {
    return FieldError("--batch", "1 beside --cu-seqlens-q, which says more",
                      absl::StrCat(batch));
  }
  const auto spec = [&](int64_t heads, int64_t seq, int64_t dim) {
    TensorSpec tensor{.dtype = CoreType(options.dtype),
                      .shape = {batch, heads, seq, dim}};
    if (bshd) std::swap(tensor.shape[1], tensor.shape[2]);
    if (ragged) tensor.shape.erase(tensor.shape.begin());
    return tensor;
  };
  const auto problem = AttentionProblem::Create(
      spec(num_q_heads, q_len, head_dim), spec(num_kv_heads, kv_len, head_dim),
      spec(num_kv_heads, kv_len, v_head_dim), attention);
  if (!problem.ok()) return NameFlag(problem.status(), ragged, bshd);
  const auto estimate =
      MemoryEstimator(MachineInfo::Detect(), threads).Estimate(*problem);
  if (!estimate.ok()) return estimate.status();
  auto footprint = FootprintBy(options.transport, *estimate, *problem);
  if (!footprint.ok()) return footprint.status();
  const OptionsFootprint listed = FootprintOf(attention);
  footprint->wire_bytes += listed.wire_bytes;
  // A stream's lists travel in the header; its chunks may be large, too.
  footprint->required_message_bytes =
      options.transport == client::Transport::kStream
          ? std::max(footprint->required_message_bytes,
                     kMessageEnvelopeBytes + listed.wire_bytes)
          : footprint->required_message_bytes + listed.wire_bytes;
  footprint->peak_per_request_bytes += listed.held_bytes;
  const auto peak_bytes =
      CheckedProduct({footprint->peak_per_request_bytes, concurrency});
  if (!peak_bytes) {
    return FieldError("--concurrency", "a peak that fits an int64",
                      absl::StrCat(concurrency));
  }

  client::MemoryEstimate result;
  result.naive_bytes = estimate->naive_bytes;
  result.flash_bytes = estimate->flash_bytes;
  result.reduction_ratio = estimate->ReductionRatio();
  result.input_bytes = estimate->input_bytes;
  result.output_bytes = estimate->output_bytes;
  result.workspace_bytes = estimate->workspace_bytes;
  result.wire_bytes = footprint->wire_bytes;
  result.peak_per_request_bytes = footprint->peak_per_request_bytes;
  result.peak_bytes = *peak_bytes;
  result.required_message_bytes = footprint->required_message_bytes;
  result.flops = estimate->flops;
  return result;
}

}  // namespace attnd::attnctl
