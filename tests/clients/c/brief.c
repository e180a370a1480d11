/* A program that lives for one encrypted connection: it sends the Kafka requests that a file holds, one after another, waits for the answer
   to each, prints the answers as they are, and ends.

   Arguments: port on 127.0.0.1, file of requests, certificate, key. */
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int give_up(const char *what)
{
    fprintf(stderr, "%s\n", what);
    return 1;
}

static int read_all(SSL *ssl, unsigned char *to, size_t bytes)
{
    for (int moved; bytes > 0; to += moved, bytes -= (size_t)moved)
        if ((moved = SSL_read(ssl, to, (int)bytes)) <= 0)
            return 0;
    return 1;
}

static size_t size_of_frame(const unsigned char *frame)
{
    return 4 + ((size_t)frame[0] << 24 | (size_t)frame[1] << 16 | (size_t)frame[2] << 8 | frame[3]);
}

int main(int count, char **arguments)
{
    static unsigned char requests[1 << 16], answer[1 << 16];
    if (count != 5)
        return give_up("arguments: port, file of requests, certificate, key");
    FILE *file = fopen(arguments[2], "rb");
    size_t bytes = file ? fread(requests, 1, sizeof requests, file) : 0;
    struct sockaddr_in broker = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arguments[1]))};
    broker.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(descriptor, (struct sockaddr *)&broker, sizeof broker) != 0)
        return give_up("cannot connect");
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    if (SSL_CTX_use_certificate_file(context, arguments[3], SSL_FILETYPE_PEM) != 1 || SSL_CTX_use_PrivateKey_file(context, arguments[4], SSL_FILETYPE_PEM) != 1)
        return give_up("no certificate");
    SSL *ssl = SSL_new(context);
    SSL_set_fd(ssl, descriptor);
    if (SSL_connect(ssl) != 1)
        return give_up("no handshake");
    for (size_t at = 0; at + 4 <= bytes; at += size_of_frame(requests + at)) {
        size_t size = size_of_frame(requests + at);
        if (at + size > bytes || SSL_write(ssl, requests + at, (int)size) != (int)size)
            return give_up("a request was not sent");
        if (!read_all(ssl, answer, 4) || size_of_frame(answer) > sizeof answer || !read_all(ssl, answer + 4, size_of_frame(answer) - 4))
            return give_up("no answer");
        fwrite(answer, 1, size_of_frame(answer), stdout);
    }
    SSL_shutdown(ssl);
    SSL_free(ssl);
    SSL_CTX_free(context);
    close(descriptor);
    return 0;
}
