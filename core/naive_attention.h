// The baseline that Benchmark compares with: attention that materialises the
// N x N scores. Honest, so threaded and vectorised by the compiler for the
// host's instruction set; but with no tiling and no packing.
#ifndef ATTND_CORE_NAIVE_ATTENTION_H_
#define ATTND_CORE_NAIVE_ATTENTION_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "core/attention_engine.h"

namespace attnd {

// Bytes of the score matrices: num_q_heads * q_len * kv_len floats of every
// batch entry. Saturates at the largest int64.
int64_t NaiveScoreBytes(const AttentionProblem& problem);

// Computes what AttentionEngine::Run computes, on the workers of `engine`.
// `problem` must be of F32 in BHSD, with no options set except scale,
// temperature, causal, windows and lse. Others would be left out silently.
// Allocates the score matrix, and returns RESOURCE_EXHAUSTED if there is no
// memory for it. Must not be called by a worker.
absl::StatusOr<RunStats> NaiveAttention(AttentionEngine& engine,
                                        const AttentionProblem& problem,
                                        const AttentionBuffers& buffers,
                                        const StopSignal* stop = nullptr);

}  // namespace attnd

#endif  // ATTND_CORE_NAIVE_ATTENTION_H_
