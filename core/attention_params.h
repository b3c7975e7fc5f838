// The values that describe one attention call in the core: its options, and the
// numbers of a checked problem.
#ifndef ATTND_CORE_ATTENTION_PARAMS_H_
#define ATTND_CORE_ATTENTION_PARAMS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "base/shape.h"
#include "base/types.h"

namespace attnd {

// The options of a call that shape its scores. base/attention_options.def lists
// the members. Of bias and mask it has only the types and shapes;
// AttentionBuffers points to their elements.
struct AttentionOptions {
  using Tensor = TensorSpec;

#define ATTND_OPTION(type, name, initial, ...) type name = initial;
#include "base/attention_options.def"
};

// What a call should return. The members have the names of the fields in
// attention.proto.
struct OutputOptions {
  bool return_lse = false;
  std::optional<DataType> output_dtype = {};  // unset = the query's type
};

// The numbers of a checked problem, with every default resolved. Only
// AttentionProblem::Create makes one. Lengths count tokens. The lengths and
// offsets of single batch entries are in Visibility.
struct AttentionParams {
  int64_t batch = 1;         // entries, in a ragged batch too
  int64_t num_q_heads = 1;   // a multiple of num_kv_heads
  int64_t num_kv_heads = 1;  // q head h reads kv head h / HeadsPerGroup()
  // The lengths of the tensors along the seq axis. No batch entry is longer. In
  // a ragged batch, the lengths of all entries add up to these.
  int64_t q_len = 0;
  int64_t kv_len = 0;
  int64_t head_dim = 1;
  int64_t v_head_dim = 1;
  DataType query_dtype = DataType::kF32;
  DataType key_dtype = DataType::kF32;
  DataType value_dtype = DataType::kF32;
  DataType output_dtype = DataType::kF32;
  DataType bias_dtype = DataType::kF32;
  Layout layout = Layout::kBhsd;
  Precision precision = Precision::kAuto;
  float score_scale = 1;   // scale / temperature; multiplies dot(q, k)
  float soft_cap = 0;      // 0 = none
  int64_t block_size = 0;  // 0 = automatic
  Causal causal = Causal::kNone;
  bool ragged = false;
  bool has_bias = false;
  bool has_mask = false;
  bool has_alibi = false;
  bool has_sinks = false;
  bool return_lse = false;

  // Returns how many query heads share one kv head, or 1 if there are no heads.
  int64_t HeadsPerGroup() const {
    return num_kv_heads > 0 ? num_q_heads / num_kv_heads : 1;
  }

  // Returns whether a soft cap, ALiBi or a bias changes the scaled dot
  // products.
  bool AdjustsScores() const { return soft_cap != 0 || has_alibi || has_bias; }
};

}  // namespace attnd

#endif  // ATTND_CORE_ATTENTION_PARAMS_H_
