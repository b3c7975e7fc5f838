// Checks the kernels that this machine uses, forward and backward. The server
// does this before it accepts the first client.
#ifndef ATTND_SERVER_PROCESS_SELF_TEST_H_
#define ATTND_SERVER_PROCESS_SELF_TEST_H_

#include "absl/status/status.h"
#include "core/attention_engine.h"

namespace attnd::server {

// Compares the answers of `engine` to several small problems with those of
// core/reference_attention.h. Returns INTERNAL if an answer differs too much.
// The error says for which shape, and by how much. Takes several milliseconds.
absl::Status RunSelfTest(AttentionEngine& engine);

}  // namespace attnd::server

#endif  // ATTND_SERVER_PROCESS_SELF_TEST_H_
