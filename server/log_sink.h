// Where the lines of the log go: to stderr, without anybody waiting for it.
#ifndef ATTND_SERVER_LOG_SINK_H_
#define ATTND_SERVER_LOG_SINK_H_

#include <memory>
#include <mutex>
#include <thread>

#include "spdlog/sinks/base_sink.h"

namespace attnd::server {

// A sink of spdlog that never blocks who logs. A stderr that nobody reads, such
// as a full pipe, blocks a thread of the sink alone. At most a MiB of lines
// waits for it. Lines beyond that are dropped, and a line says how many they
// were as soon as stderr takes lines again.
//
// The text of each line is cut at 1024 bytes and made Printable here, so that
// no caller can forget it. Thread-safe.
//
// spdlog's own asynchronous logger does not do: its thread pool is joined when
// the process ends, which waits for ever where its thread is stuck in a write.
// Neither may stderr be made non-blocking, because that would change it for all
// processes that share it.
class LogSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  // Writes to `fd`, which the caller keeps open.
  explicit LogSink(int fd);
  // Closes the sink, unless that is done.
  ~LogSink() override;

  // Waits until every line so far is written, for half a second at most. After
  // that no more lines are taken. A thread that is stuck in a write is left
  // behind, for the end of the process to end it.
  void Close();

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override;
  // Waits as Close does.
  void flush_() override;

 private:
  struct State;

  static void Write(State& state);

  // Shared with the thread, which may outlive the sink.
  const std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_LOG_SINK_H_
