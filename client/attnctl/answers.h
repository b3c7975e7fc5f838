// What a call on .npy files answers: room for it, the files that it goes to,
// and the comparison with what was expected.
#ifndef ATTND_CLIENT_ATTNCTL_ANSWERS_H_
#define ATTND_CLIENT_ATTNCTL_ANSWERS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/session.h"
#include "client/types.h"

namespace attnd::attnctl {

// One array of an answer.
struct Answer {
  const char* name;
  std::string path;           // where it goes; empty = nowhere
  std::string expected_path;  // what it is held against; empty = nothing
  client::DataType dtype = client::DataType::kF32;
  std::vector<int64_t> shape = {};
  std::vector<std::byte> bytes = {};

  // Makes room. Refuses what the client could not receive anyway, before it
  // allocates anything.
  absl::Status Allocate(int64_t max_message_bytes);

  client::Elements elements() { return {dtype, bytes}; }
  // Of an F32 answer.
  std::span<float> floats();
};

// What all commands with answers report beside them.
struct AnswerReport {
  client::ExecutionStats stats;
  absl::Duration elapsed;
  double max_error = 0;
  bool json = false;
};

// The flags --max-error and --json.
void AddReportFlags(CLI::App& command, AnswerReport& report);

// Writes what `answers` ask for, then compares it, then prints the report.
ExitCode Finish(const std::vector<Answer>& answers, const AnswerReport& report,
                Session& session);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_ANSWERS_H_
