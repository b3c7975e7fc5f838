// One attention call that the benchmarks time: its shape, its tensors, and the
// code that computes it.
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
  int64_t window =
      0;  // the maximum number of keys that a row sees; 0 means all
  int threads = 1;
  Pass pass = Pass::kForward;
  // A caller can force the options from here on. By default none is forced.
  int64_t block_size = 0;
  Precision precision = Precision::kAuto;
  std::optional<Isa> isa = {};

  // Says whether the case has few rows over many keys. Reading the keys then
  // limits its speed, and arithmetic does not.
  bool ReadsMost() const { return q_len * q_heads / kv_heads <= 16; }
};

std::string_view DataTypeName(DataType type);  // "bf16"

AttentionProblem ProblemOf(const Case& c);

// Random inputs, and memory for the answers. It is aligned like that of a
// server.
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
  // These are only set for a case that computes gradients.
  Workspace lse_, grad_output_, grad_query_, grad_key_, grad_value_;
};

// Makes one call and waits for it. Throws if it fails.
RunStats RunOnce(const Case& c, AttentionEngine& engine,
                 const AttentionProblem& problem, const Tensors& tensors);

// A single worker stays on one processor, the last one that this process can
// use. Then the peak that is measured beside a case is the peak of the same
// core.
std::unique_ptr<AttentionEngine> MakePinnedEngine(const EngineOptions& options);

// Returns the shape with the names that records use.
Json RecordOf(const Case& c);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CORE_CASE_H_
