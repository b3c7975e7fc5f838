#include "client/attnctl/server_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace attnd::attnctl {
namespace {

TEST(ServerAddressTest, TakesTheTargetsOfGrpc) {
  for (const char* address :
       {"localhost", "127.0.0.1:50051", "host.example:1", "host:65535",
        "host:https", "[::1]:50051", "::1", "[::1]", "unix:/run/a:99999",
        "unix:///run/attnd.sock", "unix-abstract:attnd", "dns:host:50051",
        "dns:///host:50051", "dns://8.8.8.8/host:50051", "dns:///host",
        "ipv4:127.0.0.1:50051,127.0.0.2:50051", "ipv6:[::1]:50051"}) {
    EXPECT_EQ(ServerAddressError(address), "") << address;
  }
}

TEST(ServerAddressTest, RefusesPortsThatGrpcWouldReplace) {
  for (const char* address :
       {"127.0.0.1:91536", "127.0.0.1:-1", "127.0.0.1:", "127.0.0.1:0",
        "127.0.0.1:65536", "127.0.0.1:50051x", "127.0.0.1: 1", ":", "host:+1",
        "[::1]:65536", "dns:///host:65536", "dns:host:0",
        "dns://8.8.8.8/host:-1", "ipv4:127.0.0.1:50051,127.0.0.2:65536",
        "ipv6:[::1]:0", "host:99999999999999999999"}) {
    EXPECT_EQ(ServerAddressError(address),
              std::string("expected host:port or unix:PATH, with a port from "
                          "1 to 65535, got ") +
                  address);
  }
}

TEST(ServerAddressTest, RefusesTheSchemesOfOtherProtocols) {
  EXPECT_EQ(ServerAddressError("http://127.0.0.1:26000"),
            "expected host:port or unix:PATH, without http://, got "
            "http://127.0.0.1:26000");
  EXPECT_THAT(ServerAddressError("grpc://host:1"),
              ::testing::HasSubstr("without grpc://"));
  EXPECT_THAT(ServerAddressError("dns:///http://host:1"),
              ::testing::HasSubstr("without http://"));
  EXPECT_EQ(ServerAddressError(""),
            "expected host:port or unix:PATH, got nothing");
}

TEST(ServerAddressTest, AnAddressWithoutAPortGetsThatOfAttnd) {
  const std::pair<const char*, const char*> cases[] = {
      {"localhost", "localhost:50051"},
      {"10.0.0.1", "10.0.0.1:50051"},
      {"::1", "[::1]:50051"},
      {"[::1]", "[::1]:50051"},
      {"dns:host", "dns:host:50051"},
      {"dns:///host", "dns:///host:50051"},
      {"dns://8.8.8.8/host", "dns://8.8.8.8/host:50051"},
      {"ipv4:10.0.0.1,10.0.0.2:1", "ipv4:10.0.0.1:50051,10.0.0.2:1"},
      {"ipv6:[::1],::2", "ipv6:[::1]:50051,[::2]:50051"}};
  for (const auto& [address, target] : cases) {
    EXPECT_EQ(WithDefaultPort(address), target);
  }
}

TEST(ServerAddressTest, OtherAddressesStayAsTheyAre) {
  for (const char* address :
       {"127.0.0.1:1", "host:https", "[::1]:1", "unix:/run/a", "unix:a",
        "unix-abstract:attnd", "dns:///host:1", "xds:attnd",
        // ServerAddressError refuses these.
        "", ":", "host:", "host:0", "http://host"}) {
    EXPECT_EQ(WithDefaultPort(address), address);
  }
}

}  // namespace
}  // namespace attnd::attnctl
