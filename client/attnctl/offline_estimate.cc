#include "client/attnctl/offline_estimate.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/status_macros.h"
#include "core/attention_params.h"
#include "core/field_error.h"
#include "core/machine.h"
#include "cost/cost_query.h"

namespace attnd::attnctl {
namespace {

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

// For float tensors, because no flag takes another type.
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

Transport CostTransport(client::Transport transport) {
  switch (transport) {
    case client::Transport::kInline:
      return Transport::kInline;
    case client::Transport::kStream:
      return Transport::kStream;
    case client::Transport::kSharedMemory:
      return Transport::kSharedMemory;
  }
  return Transport::kInline;
}

// Replaces the field that `status` names by its flag: options.key_lengths[0] is
// --key-lengths[0], and options.mask.shape is --mask-shape.
absl::Status NameFlag(const absl::Status& status) {
  const auto field = FieldOf(status);
  if (!field) return status;
  return WithField(
      status,
      absl::StrCat("--", absl::StrReplaceAll(*field, {{"options.", ""},
                                                      {"_", "-"},
                                                      {".shape", "-shape"}})));
}

absl::StatusOr<QueryCost> CostOfFlags(
    const client::MemoryEstimateOptions& options) {
  CostQuery query{.dtype = CoreType(options.dtype),
                  .options = CoreOptions(options),
                  .transport = CostTransport(options.transport),
                  .machine = MachineInfo::Detect()};
  query.seq_len.value = options.seq_len;
  query.dimensions.value = options.dimensions;
  query.batch.value = options.batch;
  query.num_q_heads.value = options.num_q_heads;
  query.num_kv_heads.value = options.num_kv_heads;
  query.q_len.value = options.q_len;
  query.kv_len.value = options.kv_len;
  query.head_dim.value = options.head_dim;
  query.v_head_dim.value = options.v_head_dim;
  query.threads.value =
      options.threads != 0 ? options.threads : AvailableThreads();
  query.concurrency.value = options.concurrency;
  ATTND_RETURN_IF_ERROR(query.CheckSizes());
  ATTND_RETURN_IF_ERROR(query.SetDefaults());
  return CostOf(query);
}

}  // namespace

absl::StatusOr<client::MemoryEstimate> EstimateOffline(
    const client::MemoryEstimateOptions& options) {
  const absl::StatusOr<QueryCost> cost = CostOfFlags(options);
  if (!cost.ok()) return NameFlag(cost.status());
  const MemoryEstimate& computation = cost->computation;
  client::MemoryEstimate result;
  result.naive_bytes = computation.naive_bytes;
  result.flash_bytes = computation.flash_bytes;
  result.reduction_ratio = computation.ReductionRatio();
  result.input_bytes = computation.input_bytes;
  result.output_bytes = computation.output_bytes;
  result.workspace_bytes = computation.workspace_bytes;
  result.wire_bytes = cost->call.wire_bytes;
  result.peak_per_request_bytes = cost->call.peak_bytes;
  result.peak_bytes = cost->peak_bytes;
  result.required_message_bytes = cost->call.required_message_bytes;
  result.flops = computation.flops;
  return result;
}

}  // namespace attnd::attnctl
