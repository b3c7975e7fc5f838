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

// Whether the baseline can compute `problem`: f32 in BHSD, of whose options
// only scale, temperature, causal, windows and lse are set.
bool NaiveCanCompute(const AttentionProblem& problem);

// `problem` must be one that it can. Same inputs, same outputs as
// AttentionEngine::Run, on the same workers. Allocates the score matrix:
// RESOURCE_EXHAUSTED where there is no room. Not from a worker.
absl::StatusOr<RunStats> NaiveAttention(AttentionEngine& engine,
                                        const AttentionProblem& problem,
                                        const AttentionBuffers& buffers,
                                        const StopSignal* stop = nullptr);

}  // namespace attnd

#endif  // ATTND_CORE_NAIVE_ATTENTION_H_
