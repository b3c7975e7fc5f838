// One attention call that the benches time: its shape, its tensors, and whoever
// computes it.
#ifndef ATTND_BENCH_CORE_CASE_H_
#define ATTND_BENCH_CORE_CASE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "bench/records.h"
#include "core/attention_engine.h"
#include "core/workspace.h"

namespace attnd::bench {

struct Case {
  enum class Pass { kForward, kBackward, kNaive };

  std::string name;
  DataType dtype = DataType::kF32;
  int64_t q_heads = 1;
  int64_t kv_heads = 1;
  int64_t q_len = 0;
  int64_t kv_len = 0;
  int64_t head_dim = 128;
  bool causal = false;
  int64_t window = 0;  // keys that a row sees at most; 0 = all
  int threads = 1;
  Pass pass = Pass::kForward;
  // What a caller or a host may force; by default nothing.
  int64_t block_size = 0;
  Precision precision = Precision::kAuto;
  std::optional<Isa> isa = {};

  // A few rows over many keys: bound by reading them, not by arithmetic.
  bool ReadsMost() const { return q_len * q_heads / kv_heads <= 16; }
};

std::string_view DataTypeName(DataType type);  // "bf16"

AttentionProblem ProblemOf(const Case& c);

// Random inputs and room for the answers, aligned as a server's.
class Tensors {
 public:
  Tensors(const Case& c, const AttentionProblem& problem);

  AttentionBuffers forward() const;
  BackwardBuffers backward() const;

  const Workspace& query() const { return query_; }
  const Workspace& key() const { return key_; }
  const Workspace& value() const { return value_; }
  const Workspace& output() const { return output_; }
  const Workspace& grad_output() const { return grad_output_; }
  const Workspace& grad_query() const { return grad_query_; }
  const Workspace& grad_key() const { return grad_key_; }
  const Workspace& grad_value() const { return grad_value_; }

 private:
  Workspace query_, key_, value_, output_;
  // Only where gradients are asked for.
  Workspace lse_, grad_output_, grad_query_, grad_key_, grad_value_;
};

// One call, waited for; throws where it fails.
RunStats RunOnce(const Case& c, AttentionEngine& engine,
                 const AttentionProblem& problem, const Tensors& tensors);

// A single worker stays on one processor, the last that this process may use,
// so that the peak measured beside a case is that of the core which ran it.
std::unique_ptr<AttentionEngine> MakePinnedEngine(const EngineOptions& options);

// The shape, by the names that records use.
Json RecordOf(const Case& c);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CORE_CASE_H_
