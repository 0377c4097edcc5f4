/*
 * The shim: what DPDK offers only as inline functions, thread-local variables or bit-fields.
 * Nothing in here is called for every packet that is forwarded: four such calls a packet were
 * measured at 8 cycles, a third of all.
 */
#ifndef RVS_SHIM_H
#define RVS_SHIM_H

#include <stdint.h>

struct rte_mbuf;
struct rte_mempool;

/*
 * The fields of an mbuf that RVS uses, under the same names in every DPDK release.  rte_mbuf itself
 * stays opaque to Rust: from 24.11 on its fields live in anonymous unions, whose generated names
 * change from release to release, while their places are part of DPDK's ABI.  shim.c holds each
 * place against the real structure, so that a release that moves one does not compile.
 */
struct rvs_mbuf {
	void *buf_addr;
	uint64_t buf_iova;
	uint16_t data_off;
	uint16_t refcnt;
	uint16_t nb_segs;
	uint16_t port;
	uint64_t ol_flags;
	uint32_t packet_type;
	uint32_t pkt_len;
	uint16_t data_len;
	uint16_t vlan_tci;
	uint32_t rss;
	uint32_t hash_hi;
	uint16_t vlan_tci_outer;
	uint16_t buf_len;
	struct rte_mempool *pool;
	/* the second cache line: slow paths only */
	struct rvs_mbuf *next;
};

int rvs_errno(void);
unsigned int rvs_lcore_id(void);

struct rte_mbuf *rvs_pktmbuf_alloc(struct rte_mempool *pool);
int rvs_pktmbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count);

/* The same, with the length of the data set: what a driver does to the packets that it hands over. */
int rvs_pktmbuf_alloc_bulk_sized(struct rte_mempool *pool, struct rte_mbuf **mbufs,
				 unsigned int count, uint16_t length);

/* Bursts with the callbacks (pdump, latencystats, ...) that somebody hung on the queue. */
uint16_t rvs_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
uint16_t rvs_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);

/* 1 up, 0 down, negative errno; the speed in Mbit/s, UINT32_MAX if unknown. */
int rvs_eth_link(uint16_t port, uint32_t *speed);

/*
 * Whether a bond sends by this member: 1 yes, 0 no, negative errno. With LACP that is more than a link: both
 * ends have agreed upon it.
 */
int rvs_bond_sends_by(uint16_t bond, uint16_t member);

#endif
