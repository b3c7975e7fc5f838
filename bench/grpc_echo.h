// A plain unary echo through gRPC, with raw bytes and with protobuf. It shows
// what any service with messages of that size pays. Only the size limit differs
// from gRPC's defaults. Only its source file includes gRPC among the
// benchmarks.
#ifndef ATTND_BENCH_GRPC_ECHO_H_
#define ATTND_BENCH_GRPC_ECHO_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace attnd::bench {

// Serves until it is destroyed. Throws std::runtime_error if it cannot listen.
class EchoServer {
 public:
  // Each address is "host:port", where port 0 chooses a free one, or
  // "unix:PATH".
  explicit EchoServer(const std::vector<std::string>& listen);
  ~EchoServer();

  // Returns the addresses in the form that clients use, in the order of
  // `listen`.
  const std::vector<std::string>& addresses() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Has one connection. Calls throw std::runtime_error if they fail.
class EchoClient {
 public:
  EchoClient(const std::string& target, int64_t request_bytes,
             int64_t reply_bytes);
  ~EchoClient();

  // Sends the bytes of the request and receives those of the reply, without
  // reading them.
  void CallRaw();
  void CallProtobuf();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::bench

#endif  // ATTND_BENCH_GRPC_ECHO_H_
